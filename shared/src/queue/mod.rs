//! The queue: apalis's workers on a backend of our own over PostgreSQL (ADR-001).
//!
//! The only room that names apalis. One loop that acknowledges and claims, and one heartbeat, serve all
//! queues of a process: a heartbeat never waits behind work, a slot is claimed for when it is free (short local
//! tasks excepted, see `lanes`), and both outlive any database outage. What a job *does* is not known here
//! ([`crate::jobs::Handler`]).

mod ack;
mod backend;
mod exchange;
mod heartbeat;
mod held;
mod lanes;
mod listen;
mod run;
mod setup;

pub use run::{QueueOptions, run};
pub use setup::{migrate, set_up_apalis};
