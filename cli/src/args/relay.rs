//! What can be asked of relays.

use clap::{Args, Subcommand};

use super::{By, Exclusion};

#[derive(Debug, Subcommand)]
pub(crate) enum Relay {
    /// Every relay with its state
    #[command(after_help = "EXAMPLES:
  bigbrotr relay list
  bigbrotr relay list --state down --json")]
    List {
        /// Only this state
        #[arg(long, value_parser = ["alive", "suspect", "down", "unchecked"])]
        state: Option<String>,
    },
    /// One relay: state, checks, which stretches of its timeline are archived with what proof, and what it served that is no event
    #[command(after_help = "EXAMPLES:
  bigbrotr relay show wss://relay.example")]
    Show {
        /// The relay, in any spelling
        url: String,
    },
    /// How much of a relay's timeline is archived: a bar per month, by what proof
    #[command(after_help = "EXAMPLES:
  bigbrotr relay coverage wss://relay.example

A second counts as proved only when the relay proved that we hold all it serves of it
(docs/adr/003-proof.md).")]
    Coverage {
        /// The relay, in any spelling
        url: String,
    },
    /// One relay's last 30 days: availability, times, failures and repairs
    #[command(after_help = "EXAMPLES:
  bigbrotr relay uptime wss://relay.example --json

Where too little was measured for a figure, that is said instead of one.")]
    Uptime {
        /// The relay, in any spelling
        url: String,
    },
    /// Sync relays again that were set aside because they served forged events
    #[command(after_help = "EXAMPLES:
  bigbrotr relay forgive wss://relay.example --why 'its database was restored'

`relay show` says which relays are set aside, and why. Their forged events are counted anew.")]
    Forgive {
        /// Relays, in any spelling
        #[arg(required = true, value_name = "URL")]
        urls: Vec<String>,
        #[command(flatten)]
        by: By,
    },
    #[command(flatten)]
    Exclusion(Exclusion),
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr event 5c83da77af1dec6d7289834998ad7aafbd9e2191396d75ec3cc27f5a77226f36

Exits with 1 when no relay was seen to have it.")]
pub(crate) struct Event {
    /// The event's id, 64 hexadecimal digits
    pub(crate) id: String,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr alerts
  bigbrotr alerts wss://relay.example --last 100
  bigbrotr alerts --pending       what the webhook has not taken yet")]
pub(crate) struct Alerts {
    /// Only this relay, in any spelling
    pub(crate) url: Option<String>,
    /// Only what waits for delivery
    #[arg(long)]
    pub(crate) pending: bool,
    /// The last so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) last: u32,
}
