//! The protocol, pure: text and time go in, values come out.
//!
//! Knows no socket, no clock, no database: the driver in `relay` joins it to a stream. A relay's
//! behaviour, however hostile, is a value here and never an error of ours.

pub mod ask;
pub mod auth;
pub mod capability;
pub mod delivery;
pub mod dense;
pub mod filter;
pub mod frame;
pub mod keys;
pub mod kinds;
pub mod neg;
pub mod nip11;
pub mod nip19;
pub mod nip66;
pub mod page;
pub mod pow;
pub mod refusal;
pub mod session;
pub mod walk;

pub use ask::{Exchange, Question, Reply};
pub use auth::{Auth, AuthState};
pub use capability::{Probe, ReadSeen, Survey, claimed, speaks_of_filter};
pub use delivery::{Delivery, Parcel, Settled};
pub use dense::{Dense, DenseSpec};
pub use filter::Filter;
pub use frame::{EoseHint, FrameError, RelayFrame};
pub use keys::{KeyError, Keys};
pub use kinds::{KindSearch, refuses_filter};
pub use nip11::{Fee, Fees, InfoView, Limitation, Retention};
pub use page::{PageEnd, PageFacts};
pub use refusal::{CloseClass, answers_request, classify, is_greeting};
pub use session::{Cut, Delivered, Limits, Step, Subscription};
pub use walk::{Claim, Next, Walk, WalkSpec};
