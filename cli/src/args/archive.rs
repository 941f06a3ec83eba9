//! What can be asked of the archive as a whole.

use clap::{Args, Subcommand};

use super::By;

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr verify                          about 10,000 events drawn at random, and all that belongs together
  bigbrotr verify --sample 2% --seed 7     a share; the same seed draws the same events
  bigbrotr verify --all                    every event: some 10,000 a second and core
  bigbrotr verify --json

Looked at: relay URLs and documents; ids, signatures, keys, d tags and tag hashes of the
events drawn; and, over the whole archive, observations without event or relay, keys that
are nobody's, bodies that should be gone, coverage, and whether the rollups agree.
Exit code 1 when a fault was found; each is named by table, column and row. Reads only;
needs a role that may read, such as bigbrotr_reader.")]
pub(crate) struct Verify {
    /// About how many events, or what share of them (such as 2%)
    #[arg(long, value_name = "N|P%", default_value = "10000", conflicts_with = "all")]
    pub(crate) sample: String,
    /// Every event
    #[arg(long)]
    pub(crate) all: bool,
    /// What the draw begins with; the same seed draws the same events
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: i64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Retention {
    /// What the policies of the configuration would take now, each by itself; touches nothing
    #[command(after_help = "EXAMPLES:
  bigbrotr retention plan
  BIGBROTR_RETENTION_DAYS=90 bigbrotr retention plan     what that would take

Counts exactly and so reads the archive. By age whole months go, and a horizon is left, below
which no relay is asked any more. Events of a kind keep their row without a body, so that nothing
fetches them again. Of a relay its observations go, and the events that nobody else has.")]
    Plan,
    /// Take it, batch by batch; without --yes this is `plan`
    #[command(after_help = "EXAMPLES:
  bigbrotr retention apply            shows what that would take
  bigbrotr retention apply --yes

The leading scheduler takes by itself, within minutes, what its own configuration says; this is for
not waiting, and for lowering a horizon: policies that keep more than before fetch again what lies
between, which no scheduler does by itself. Deleted is deleted. Ctrl-C stops between two batches.")]
    Apply {
        /// Do it, instead of showing what it would take
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        by: By,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Archive {
    /// Whether bodies are kept, how full the disk budget is, horizons and policies
    Status,
    /// Keep no tags, content and signatures any more; without --yes shows what would be lost
    #[command(after_help = "EXAMPLES:
  bigbrotr archive lighten --dry-run
  bigbrotr archive lighten --yes --why 'small disk'

Ids, times, authors, kinds, d tags and who has what stay, and with them every view. What cannot be
undone: no body comes back by itself, for relays are not asked again for what is covered; and an event
without its signature proves nothing to others. `archive keep-bodies` is for what comes from then on.")]
    Lighten {
        /// Show what would be lost
        #[arg(long, conflicts_with = "yes")]
        dry_run: bool,
        /// Do it
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        by: By,
    },
    /// Keep bodies again, of what comes from now on
    KeepBodies {
        #[command(flatten)]
        by: By,
    },
}
