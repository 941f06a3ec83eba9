//! The domain's nouns: immutable values with one validating constructor each.
//!
//! No I/O, no clock, no database here; what comes back from outside is validated again.

mod closed;
mod job;
mod network;
mod outcome;

pub use closed::UnknownWord;
pub use job::{Fence, JobKind, LOCAL, Verdict};
pub use network::Network;
pub use outcome::{Outcome, Reason};
