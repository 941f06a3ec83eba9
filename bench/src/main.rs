//! The benchmarks: one binary, one JSON object a figure, each figure beside a named reference taken in the
//! same run. A figure that cannot be taken is a failure.
//!
//! `cargo run --release -p bench -- idle --json`
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing figures is what this program does")]

mod census;
mod figure;
mod idle;
mod judge;
mod peer;
mod process;
mod queue;
mod scale;
mod storage;
mod sync;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use figure::Report;

/// Measures this build against its peers and limits.
#[derive(Parser)]
#[command(
    about,
    after_help = "Example:\n  cargo build --release && cargo run --release -p bench -- idle --json\n\nidle needs a PostgreSQL superuser URL in BIGBROTR_TEST_PG; queue, validate, monitor, mine, judge, storage, sync, ingest and scale start a durable server of their own with the tools of ./test; the peer of validate and monitor needs root (a hosts file of its own). The peer of storage, sync and ingest needs the original's schema: PEER_GIT names a clone of it."
)]
struct Arguments {
    /// Which benchmark.
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Args)]
struct Printing {
    /// Prints JSON lines instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// Memory of an idle scheduler and worker.
    Idle {
        #[command(flatten)]
        printing: Printing,
        /// Repetitions; figures are medians.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
        n: u32,
    },
    /// The queue: throughput, enqueueing, claims under load, views, idleness, wake-up.
    Queue {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: queue::Options,
    },
    /// Candidates asked by one worker: 2,000 mock relays, some of which refuse, hang, or are no relays.
    Validate {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: census::Options,
    },
    /// Relays checked by one worker: the same fleet, every check, real TLS.
    Monitor {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: census::Options,
    },
    /// Archived events looked through for relay URLs: by one core, and by the whole job.
    Mine {
        #[command(flatten)]
        printing: Printing,
        /// Repetitions; figures are medians.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
        n: u32,
    },
    /// What one look at a relay costs the database: processor time and bytes.
    Judge {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: judge::Options,
    },
    /// The archive as it grows: bytes, storing, asking, views, beside the original's schema.
    Storage {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: storage::Options,
    },
    /// Relays read from the beginning: speed, download, requests, and that nothing is missing.
    Sync {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: sync::Options,
    },
    /// Every event from five relays: what an observation costs the worker and the database.
    Ingest {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: sync::Options,
    },
    /// Ten thousand relays and up to twenty workers on this machine: where the first wall is.
    Scale {
        #[command(flatten)]
        printing: Printing,
        #[command(flatten)]
        options: scale::Options,
    },
    /// The mock fleet of `validate` and `monitor`.
    #[command(hide = true)]
    MockFleet(census::MockArguments),
    /// The relays of `scale`.
    #[command(hide = true)]
    ScaleRelays(scale::RelaysArguments),
    /// A process of the queue's benchmark that works off jobs of nothing.
    #[command(hide = true)]
    QueueWorker(queue::WorkerArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            // An interrupt drops what is under way, and with it every process that was started.
            tokio::select! {
                measured = Box::pin(measure(arguments.bench)) => measured,
                interrupt = tokio::signal::ctrl_c() => Err(match interrupt {
                    Ok(()) => anyhow::anyhow!("interrupted"),
                    Err(error) => error.into(),
                }),
            }
        })
    });
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every figure was taken and met its goal.
async fn measure(bench: Bench) -> anyhow::Result<bool> {
    let mut report;
    match bench {
        Bench::Idle { printing, n } => {
            report = Report::new(printing.json);
            idle::run(n, &mut report).await?;
        }
        Bench::Queue { printing, options } => {
            report = Report::new(printing.json);
            queue::run(&options, &mut report).await?;
        }
        Bench::Validate { printing, options } => {
            report = Report::new(printing.json);
            census::validate(&options, &mut report).await?;
        }
        Bench::Monitor { printing, options } => {
            report = Report::new(printing.json);
            census::monitor(&options, &mut report).await?;
        }
        Bench::Mine { printing, n } => {
            report = Report::new(printing.json);
            census::mining(n, &mut report).await?;
        }
        Bench::Judge { printing, options } => {
            report = Report::new(printing.json);
            judge::run(&options, &mut report).await?;
        }
        Bench::Storage { printing, options } => {
            report = Report::new(printing.json);
            storage::run(&options, &mut report).await?;
        }
        Bench::Sync { printing, options } => {
            report = Report::new(printing.json);
            sync::run(&options, &mut report).await?;
        }
        Bench::Ingest { printing, options } => {
            report = Report::new(printing.json);
            sync::ingest(&options, &mut report).await?;
        }
        Bench::Scale { printing, options } => {
            report = Report::new(printing.json);
            scale::run(&options, &mut report).await?;
        }
        Bench::ScaleRelays(arguments) => {
            scale::serve_relays(arguments).await?;
            return Ok(true);
        }
        Bench::MockFleet(arguments) => {
            census::mock(arguments).await?;
            return Ok(true);
        }
        Bench::QueueWorker(arguments) => {
            queue::work(arguments).await?;
            return Ok(true);
        }
    }
    Ok(report.ok())
}
