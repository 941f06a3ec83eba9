//! The commands that answer and end, one file each.

mod archive;
mod bar;
mod candidate;
mod check;
mod config;
mod coverage;
mod doctor;
mod doctor_archive;
mod exclusion;
mod export;
mod health;
mod import;
mod migrate;
mod operate;
mod publish;
mod queue;
mod relay;
mod retention;
mod seed;
mod top;
mod uptime;
mod url;
mod verify;
mod why;

pub(crate) use archive::archive;
pub(crate) use candidate::candidate;
pub(crate) use check::check;
pub(crate) use config::config;
pub(crate) use coverage::event;
pub(crate) use doctor::doctor;
pub(crate) use export::export;
pub(crate) use health::health;
pub(crate) use import::import;
pub(crate) use migrate::{migrate, role_passwords};
pub(crate) use publish::publish;
pub(crate) use queue::{queue, queue_json};
pub(crate) use relay::relay;
pub(crate) use retention::retention;
pub(crate) use seed::{read_lists, seed};
pub(crate) use top::{autoscale, top};
pub(crate) use uptime::alerts;
pub(crate) use url::url;
pub(crate) use verify::verify;
pub(crate) use why::why;

pub(crate) use doctor::network_note;
