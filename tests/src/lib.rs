//! The test kit: what the tests need of the outside world, made real or scripted on this machine.
//!
//! Why: features are tested through the doors users have, against a real PostgreSQL, relay programs nobody
//! here wrote, and one relay whose misbehaviour is a data value. It must not know how the product does its
//! work: it starts, publishes, breaks and observes. Invariant: whatever it starts, it ends, by handle.

pub mod certs;
pub mod env;
pub mod factory;
pub mod hostile;
pub mod journal;
pub mod mmdb;
pub mod pg;
pub mod programs;
pub mod proxy;
pub mod publish;
pub mod scripted;
pub mod tcp;
pub mod tls;

pub use env::{require, skip};
