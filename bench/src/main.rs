//! The benchmarks: one binary, one JSON object a figure, each figure beside a named reference taken in the
//! same run. A figure that cannot be taken is a failure.
//!
//! `cargo run --release -p bench -- idle --json`
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing figures is what this program does")]

mod figure;
mod idle;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use figure::Figure;

/// Measures this build against its peers and limits.
#[derive(Parser)]
#[command(
    about,
    after_help = "Example:\n  cargo build --release && cargo run --release -p bench -- idle --json\n\nNeeds a PostgreSQL superuser URL in BIGBROTR_TEST_PG, or the tools of ./test to start one."
)]
struct Arguments {
    /// Which benchmark.
    bench: Bench,
    /// Prints JSON lines instead of a table.
    #[arg(long)]
    json: bool,
    /// Repetitions; figures are medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    n: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bench {
    /// Memory of an idle scheduler and worker.
    Idle,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.bench {
                Bench::Idle => idle::run(arguments.n).await,
            }
        })
    });
    match measured {
        Ok(figures) => {
            for figure in &figures {
                if arguments.json { println!("{}", figure.json()) } else { println!("{}", figure.line()) }
            }
            if figures.iter().all(Figure::ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
