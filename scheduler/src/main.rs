//! The scheduler as a process: configuration, signals, metrics endpoint. The work is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shared::config::Config;
use shared::process;

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
    process::serve(
        "scheduler",
        config.as_deref(),
        print_config,
        // It signs nothing and dials nobody: what is loaded will do.
        |_| Ok(()),
        Config::scheduler_metrics,
        async |config, around| {
            Box::pin(scheduler::run(&config, around.metrics, around.health, around.stop)).await
        },
    )
}
