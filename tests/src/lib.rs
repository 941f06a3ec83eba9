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
pub mod names;
pub mod pg;
pub mod programs;
pub mod proxy;
pub mod publish;
pub mod scripted;
pub mod socks;
mod space;
pub mod tcp;
pub mod tls;
pub mod tor;
pub mod world;

pub use env::{require, skip};
