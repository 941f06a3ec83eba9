//! What can be asked and done about candidates and exclusions.

use clap::{Args, Subcommand};

use super::By;

#[derive(Debug, Subcommand)]
pub(crate) enum Candidate {
    /// URLs that may be relays, with where they were seen and what came of looking
    #[command(after_help = "EXAMPLES:
  bigbrotr candidate list --state given-up
  bigbrotr candidate list --source http --json")]
    List {
        /// Only this state
        #[arg(long, value_parser = ["untried", "failing", "given-up"])]
        state: Option<String>,
        /// Only what was seen in this kind of place
        #[arg(long, value_parser = parse_source)]
        source: Option<shared::models::Source>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        limit: u32,
    },
    /// One URL: where it was seen, how often, and the evidence of the latest look
    #[command(after_help = "EXAMPLES:
  bigbrotr candidate show wss://relay.example")]
    Show {
        /// The URL, in any spelling
        url: String,
    },
    /// Hosts, domains and hosters that have as many URLs as one may have, and how often another was named; * is all
    /// candidates of a network
    #[command(after_help = "EXAMPLES:
  bigbrotr candidate capped
  bigbrotr candidate capped --json

The limits are discover.urls_per_host, discover.urls_per_site and discover.urls_per_hoster, and in all
discover.candidates_max.")]
    Capped {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Give candidates that were given up another life; no sighting does
    #[command(after_help = "EXAMPLES:
  bigbrotr candidate revive wss://relay.example --why 'its operator wrote to us'")]
    Revive {
        /// URLs, in any spelling
        #[arg(required = true, value_name = "URL")]
        urls: Vec<String>,
        #[command(flatten)]
        by: By,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Exclusion {
    /// Leave relays alone from now on: no candidate, no schedule, no job
    #[command(after_help = "EXAMPLES:
  bigbrotr relay exclude relay.example --why 'asked by mail, 12 May'
  bigbrotr relay exclude wss://relay.example/private
  bigbrotr relay exclude --blocked '*.spam.example' --why 'wildcard spam'

Running jobs are stopped within a second or so. Nothing that is known is deleted.")]
    Exclude {
        #[command(flatten)]
        targets: Targets,
        /// It is our decision, not the wish of its operator
        #[arg(long)]
        blocked: bool,
        #[command(flatten)]
        by: By,
    },
    /// Take exclusions back
    Include {
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        by: By,
    },
    /// Who is left alone, since when, and why
    Excluded,
}

#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// A relay's URL, a host for all of its URLs, or *.host for all hosts below it
    #[arg(required = true, value_name = "URL|HOST")]
    pub(crate) targets: Vec<String>,
}

fn parse_source(text: &str) -> Result<shared::models::Source, String> {
    text.parse().map_err(|_| {
        let known: Vec<&str> = shared::models::Source::ALL.iter().map(|source| source.as_str()).collect();
        format!("possible values: {}", known.join(", "))
    })
}
