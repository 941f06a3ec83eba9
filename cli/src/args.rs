//! The command line: what can be asked, and the help that teaches it.

mod archive;
mod candidate;
mod look;
mod publish;
mod relay;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use shared::models::JobKind;

pub(crate) use archive::{Archive, Retention, Verify};
pub(crate) use candidate::{Candidate, Exclusion};
pub(crate) use look::{Check, Url};
pub(crate) use publish::Publish;
pub(crate) use relay::{Alerts, Event, Relay};
pub(crate) use transfer::{Export, Format, Import, Withheld};

/// Observes, archives and monitors Nostr relays.
#[derive(Debug, Parser)]
#[command(
    name = "bigbrotr",
    version,
    after_help = "EXAMPLES:
  bigbrotr up                          everything on this machine, in one process tree
  bigbrotr up --once relays.txt        archive these relays once, then exit
  bigbrotr url wss://Relay.Example:443/   the one spelling of a relay's URL
  bigbrotr check wss://relay.example   look at a relay now, without a database
  bigbrotr relay list --state alive    what is known
  bigbrotr why wss://relay.example     why is it not being looked at?
  bigbrotr top                         the fleet at a glance
  bigbrotr doctor                      is everything in order?

A command finds its database by --database-url, else DATABASE_URL or the configuration
file, else in the data directory of a running `bigbrotr up`.
Exit codes: 0 ok, 1 a problem was found or the command failed, 2 wrong usage or configuration."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print JSON: one value per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Configuration file [default: $BIGBROTR_CONFIG, else bigbrotr.toml if there is one]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Database to work on, instead of the configured one
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Data directory of `bigbrotr up` [default: $XDG_DATA_HOME/bigbrotr, as root /var/lib/bigbrotr]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine: a private PostgreSQL, scheduler and worker
    Up(Up),
    /// Bring a database to this program's schema: tables, functions, roles
    Migrate(Migrate),
    /// Add relay URLs as candidates: the shipped list, or files with one URL a line
    Seed(Seed),
    /// Look at one relay now and print what each check finds; needs no database
    Check(Check),
    /// Print the canonical form and the network of relay URLs, or why they are refused
    Url(Url),
    /// Relays that are known
    #[command(subcommand)]
    Relay(Relay),
    /// Which relays hold an event, on what evidence
    Event(Event),
    /// Write the archive, or a part of it, as files that can be read and cited elsewhere
    Export(Export),
    /// Take in what an export, or a dump of a relay, holds
    Import(Import),
    /// URLs that may be relays
    #[command(subcommand)]
    Candidate(Candidate),
    /// What is published of relays (NIP-66): where it stands, and what would be said
    #[command(subcommand)]
    Publish(Publish),
    /// Changes of relays' states, newest first, and whether the webhook was told
    Alerts(Alerts),
    /// Jobs: queues with their numbers, single jobs with their past, and what operators do to them
    #[command(subcommand)]
    Queue(Queue),
    /// Why a job, or the jobs of a relay, do not run
    Why(Why),
    /// The fleet at a glance: queues, budgets, workers, breakers, crowded hosts
    Top(Top),
    /// Print how many workers are wanted
    Autoscale(AutoscaleArgs),
    /// Look for problems: server, schema, clock, workers, queues, views, stored data
    Doctor(Doctor),
    /// Is what is stored true? Re-hash and re-verify a sample or all of the archive, and look for what cannot be
    Verify(Verify),
    /// What is not kept: what the policies would take, and taking it
    #[command(subcommand)]
    Retention(Retention),
    /// How much of each event is kept
    #[command(subcommand)]
    Archive(Archive),
    /// Print the configuration in force, passwords hidden
    Config(ConfigArgs),
    /// Ask a running scheduler or worker whether it does its work: for health checks of containers
    Health(Health),
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr health 127.0.0.1:9100          exit code 0 when every part does its work (/readyz)
  bigbrotr health --live 127.0.0.1:9100   0 while every part tries, whatever comes of it (/healthz)
  bigbrotr health                         at worker.metrics, else scheduler.metrics")]
pub(crate) struct Health {
    /// Where it serves metrics [default: worker.metrics, else scheduler.metrics]
    #[arg(value_name = "ADDR")]
    pub(crate) addr: Option<std::net::SocketAddr>,
    /// Ask whether it lives instead of whether it is ready
    #[arg(long)]
    pub(crate) live: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr up                        the shipped relays, the last 7 days, 5 GB
  bigbrotr up --days 30 --max-gb 50  more of both
  bigbrotr up --days all mine.txt    everything that the relays of a list have
  bigbrotr up --once --timeout 600   for scripts: exit when every relay was tried once

Ctrl-C stops cleanly and the next start resumes; a second Ctrl-C hurries.
PostgreSQL 15 or newer must be installed; its server programs are run privately,
on a Unix socket, in the data directory, never as root. Nothing else is touched.")]
pub(crate) struct Up {
    /// Lists of relay URLs to add; without any, the shipped list when nothing is known yet
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// How many days back the archive goes, or `all` [default: 7]
    #[arg(long, value_name = "N|all")]
    pub(crate) days: Option<String>,
    /// Disk budget, GB: at nine tenths of it syncing rests (monitoring goes on); or `unlimited` [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) max_gb: Option<String>,
    /// Permit relays on loopback, in private ranges and with local names
    #[arg(long)]
    pub(crate) allow_local: bool,
    /// Address of /metrics, /healthz and /readyz, or `none`
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) metrics: String,
    /// Exit when every relay was tried and nothing is left but rechecks: 0 when each has been read, else 1 and which were not
    #[arg(long)]
    pub(crate) once: bool,
    /// With --once: give up after this many seconds, with exit code 1
    #[arg(long, value_name = "S", requires = "once")]
    pub(crate) timeout: Option<u64>,
    /// Directory of PostgreSQL's server programs [default: $PG_BIN, else /usr/lib/postgresql/*/bin, else PATH]
    #[arg(long, value_name = "DIR")]
    pub(crate) pg_bin: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr migrate --database-url postgres://postgres@localhost/bigbrotr
  BIGBROTR_WRITER_PASSWORD=… BIGBROTR_READER_PASSWORD=… bigbrotr migrate

The URL must lead to the server itself, not through PgBouncer, as a superuser or as
the database's owner with CREATEROLE. Four roles are made: PREFIX_admin, PREFIX_writer,
PREFIX_refresher and PREFIX_reader; BIGBROTR_{ADMIN,WRITER,REFRESHER,READER}_PASSWORD
set their passwords. Running it again changes nothing.")]
pub(crate) struct Migrate {
    /// First part of the roles' names [default: $BIGBROTR_ROLE_PREFIX, else bigbrotr]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) role_prefix: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr seed                  the shipped list
  bigbrotr seed a.txt b.txt      your own
  grep wss: notes | bigbrotr seed -

Blank lines and lines that begin with # are skipped. Malformed lines are reported on
standard error with their numbers and lose nothing else; the exit code is 1 when no
line was valid or a file could not be read.")]
pub(crate) struct Seed {
    /// Files with one URL a line; - is standard input
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Accept loopback, private addresses and local names
    #[arg(long)]
    pub(crate) allow_local: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Queue {
    /// Every queue: due, waiting, running, and what ended in the last minute
    #[command(after_help = "EXAMPLES:
  bigbrotr queue list
  bigbrotr queue list --kind sync --jobs 20    also the first 20 live jobs")]
    List {
        /// Only this kind of jobs
        #[arg(long, value_parser = parse_kind)]
        kind: Option<JobKind>,
        /// Also list so many live jobs, earliest deadline first (at most 1,000)
        #[arg(long, value_name = "N", default_value_t = 0)]
        jobs: u32,
    },
    /// The live and finished jobs of one relay or task, or one job by its id
    #[command(after_help = "EXAMPLES:
  bigbrotr queue show wss://relay.example
  bigbrotr queue show 01JD…")]
    Show {
        /// Job id, relay URL or task name
        #[arg(value_name = "JOB|URL")]
        which: String,
    },
    /// Let nothing more be claimed from queues; what runs goes on
    #[command(after_help = "EXAMPLES:
  bigbrotr queue pause monitor.tor --why 'proxy moves'
  bigbrotr queue pause '*.tor'        all queues of a network
  bigbrotr queue resume '*.*'")]
    Pause(Hold),
    /// Let queues run empty: nothing new is enqueued by the schedule, what is there is done
    Drain(Hold),
    /// Let paused and drained queues, or a drained worker, go on
    Resume(Hold),
    /// Cancel live jobs, running ones included
    #[command(after_help = "EXAMPLES:
  bigbrotr queue cancel 01JD…
  bigbrotr queue cancel 'wss://spam.example/*'            shows what that would be
  bigbrotr queue cancel 'wss://spam.example/*' --yes      does it

A running job is stopped by its worker within its poll interval, about a second. The target comes back by its schedule.
Exit code 1 when no job is meant.")]
    Cancel(Select),
    /// Make jobs that were put back, by a failure or to wait, due now, and enqueue dead ones anew
    #[command(after_help = "EXAMPLES:
  bigbrotr queue retry --network tor --yes
  bigbrotr queue retry --kind sync --since 86400 --yes    what died within a day

Without --yes a pattern or a filter shows what would be done. Exit code 1 when no job is meant.")]
    Retry {
        #[command(flatten)]
        select: Select,
        /// Dead jobs of the last so many seconds [default: 3600]; alone, of every queue
        #[arg(long, value_name = "S")]
        since: Option<u32>,
    },
    /// Do relays, candidates or tasks before everything else
    #[command(after_help = "EXAMPLES:
  bigbrotr queue run-now wss://relay.example
  bigbrotr queue run-now wss://relay.example --kind monitor
  bigbrotr queue run-now views")]
    RunNow {
        /// Relay URLs, in any spelling, or task names
        #[arg(required = true, value_name = "URL|TASK")]
        targets: Vec<String>,
        /// Only this kind of jobs
        #[arg(long, value_parser = parse_kind)]
        kind: Option<JobKind>,
        #[command(flatten)]
        by: By,
    },
    /// What operators did
    Audit {
        /// The last so many
        #[arg(long, value_name = "N", default_value_t = 20)]
        last: u32,
    },
}

/// Who does it, and why.
#[derive(Debug, Args)]
pub(crate) struct By {
    /// Reason, kept in the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) why: String,
    /// Name kept in the audit [default: $USER]
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Hold {
    /// Queues as kind.network, with * for any
    #[arg(value_name = "QUEUE", required_unless_present = "worker")]
    pub(crate) queues: Vec<String>,
    /// A worker instead: it claims nothing more (drain), or again (resume)
    #[arg(long, value_name = "ID", conflicts_with = "queues")]
    pub(crate) worker: Option<String>,
    #[command(flatten)]
    pub(crate) by: By,
}

#[derive(Debug, Args)]
pub(crate) struct Select {
    /// Job id or target; * in a target stands for anything
    #[arg(value_name = "JOB|URL")]
    pub(crate) which: Option<String>,
    /// Only this kind of jobs
    #[arg(long, value_parser = parse_kind)]
    pub(crate) kind: Option<JobKind>,
    /// Only this network
    #[arg(long, value_parser = ["clearnet", "tor", "i2p", "loki", "local"])]
    pub(crate) network: Option<String>,
    /// Do it, instead of showing what it would be done to
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) by: By,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr why wss://relay.example
  bigbrotr why 01JD… --json

Every reason that binds is listed, the most binding first.")]
pub(crate) struct Why {
    /// Job id, relay URL or task name
    #[arg(value_name = "JOB|URL")]
    pub(crate) which: String,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr top                 redrawn every 2 seconds, until Ctrl-C
  bigbrotr top --once          once, for a pipe")]
pub(crate) struct Top {
    /// Seconds between two looks
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
    /// Print once and exit
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
#[command(
    name = "autoscale",
    after_help = "EXAMPLES:
  kubectl scale deployment bigbrotr-worker --replicas=$(bigbrotr autoscale --max 8)
  bigbrotr autoscale --json    also the backlog in seconds, and what limits"
)]
pub(crate) struct AutoscaleArgs {
    /// Never fewer
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) min: u32,
    /// Never more
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) max: u32,
}

fn parse_kind(text: &str) -> Result<JobKind, String> {
    text.parse().map_err(|_| {
        let known: Vec<&str> = JobKind::ALL.iter().map(|kind| kind.as_str()).collect();
        format!("possible values: {}", known.join(", "))
    })
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr doctor
  bigbrotr doctor --verify all     re-hash every event and check every signature

Without --verify, every relay URL and document and the newest 1,000 events are verified;
`bigbrotr verify` looks deeper.
Exit code 1 when a problem was found; every bad value is named by table, column and row.
Needs a role that may read, such as bigbrotr_reader.")]
pub(crate) struct Doctor {
    /// How many events to verify, newest first, or all
    #[arg(long, value_name = "N|all", num_args = 0..=1, default_missing_value = "all")]
    pub(crate) verify: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr config            values in force, and where each came from
  bigbrotr config --keys     every key: variable, default, range, meaning
  bigbrotr config --metrics  every metric: what it is, who shows it, labels, meaning")]
pub(crate) struct ConfigArgs {
    /// List every key there is instead
    #[arg(long)]
    pub(crate) keys: bool,
    /// List every metric that the programs export instead
    #[arg(long, conflicts_with = "keys")]
    pub(crate) metrics: bool,
}
