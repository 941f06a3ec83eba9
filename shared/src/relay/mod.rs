//! The one driver that joins a `nips` session to a `net` socket.
//!
//! It feeds bytes and time into the session and does what the session says; it must not know the
//! database, jobs, or what a page is for. Invariant: while a page is under way the socket is drained,
//! and what is kept of it is bounded by the page's limits.

mod compare;
mod deliver;
mod probe;
mod socket;
mod survey;
mod write;

#[cfg(test)]
mod tests;

pub use compare::Compared;
pub use probe::{ProbeVerdict, speaks_nostr};
pub use socket::{Page, PageEvent, RelaySocket};
pub use write::{Work, WriteProbe};
