//! The commands that answer and end, one file each.

mod check;
mod config;
mod doctor;
mod migrate;
mod queue;
mod relay;
mod seed;
mod url;

pub(crate) use check::check;
pub(crate) use config::config;
pub(crate) use doctor::doctor;
pub(crate) use migrate::{migrate, role_passwords};
pub(crate) use queue::{queue, queue_json};
pub(crate) use relay::relay;
pub(crate) use seed::{read_lists, seed};
pub(crate) use url::url;

pub(crate) use doctor::network_note;
