//! The domain's nouns: immutable values with one validating constructor each.
//!
//! No I/O, no clock, no database here; what comes back from outside is validated again.

mod closed;
mod grade;
mod network;
mod outcome;
mod policy;

pub use closed::UnknownWord;
pub use grade::{GapReason, Grade};
pub use network::Network;
pub use outcome::{Outcome, Reason};
pub use policy::{AddressPolicy, IpRange, IpRangeError};
