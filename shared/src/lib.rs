//! Everything the binaries share, one room per concern, listed in layer order:
//! a room may use only the rooms above it (`tests/it/tidy.rs` enforces it).
pub mod models;
