//! The queue: apalis's workers on a backend of our own over PostgreSQL (ADR-001).
//!
//! The only room that names apalis. One feeder, one acker and one heartbeat serve all queues of a process:
//! a heartbeat never waits behind work, a slot is claimed only when free, and each of the three outlives
//! any database outage. What a job *does* is not known here ([`crate::jobs::Handler`]).

mod acker;
mod backend;
mod feeder;
mod heartbeat;
mod run;
mod setup;

pub use run::{QueueOptions, run};
pub use setup::migrate;
