//! The scheduler as a process: configuration, signals, metrics endpoint. The work is in the library.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool answers its caller")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shared::config::Config;
use shared::process;

/// Exit code for a usage or configuration error, as clap's own.
const USAGE: u8 = 2;

/// Works out what is due and enqueues it; any number may run, one leads.
#[derive(Debug, Parser)]
#[command(
    name = "scheduler",
    version,
    after_help = "EXAMPLES:
  DATABASE_URL=postgres://bigbrotr_writer@db/bigbrotr scheduler run
  scheduler run --config /etc/bigbrotr.toml
  scheduler run --print-config    show the configuration in force, without passwords"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGINT or SIGTERM
    Run {
        /// Configuration file [default: $BIGBROTR_CONFIG, else bigbrotr.toml if there is one]
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
        /// Print the configuration in force and exit
        #[arg(long)]
        print_config: bool,
    },
}

fn main() -> ExitCode {
    let Command::Run { config, print_config } = Args::parse().command;
    let config = match Config::load(config.as_deref(), &Config::environment()) {
        Ok(config) => config,
        Err(error) => return fail(&error, USAGE),
    };
    if print_config {
        print!("{config}");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = config.require_database() {
        return fail(&error, USAGE);
    }
    process::prepare(&config);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime cannot start: {error}"), 1),
    };
    let done = runtime.block_on(process::run(config.scheduler_metrics(), async |around| {
        Box::pin(scheduler::run(&config, around.metrics, around.health, around.stop)).await
    }));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("scheduler: {error}");
    ExitCode::from(code)
}
