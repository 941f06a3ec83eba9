//! Everything the binaries share, one room per concern, listed in layer order:
//! a room may use only the rooms above it (`tests/it/tidy.rs` enforces it).

pub mod models;

pub mod clock;
pub mod telemetry;

pub mod db;
pub mod net;
pub mod nips;

pub mod relay;

pub mod checks;

pub mod jobs;

pub mod queue;

pub mod config;

pub mod process;
