//! `bigbrotr`: the one command line for people. Workers and schedulers of a fleet are programs of their own.
#![expect(clippy::print_stderr, reason = "a command line tool answers its caller")]

mod args;
mod commands;
mod embedded;
mod output;
mod up;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser as _;
use shared::config::{Config, Flag};
use shared::db::Db;
use shared::process;

use args::{Cli, Command, Global, Publish};
use embedded::Layout;
use output::Fail;

/// Connections of a command: it asks one thing at a time.
const CONNECTIONS: u32 = 2;

/// What every command is given.
struct Session {
    global: Global,
    env: BTreeMap<String, String>,
    layout: Layout,
}

impl Session {
    /// The configuration, with `flags` over it.
    fn config(&self, flags: &[Flag]) -> Result<Config, Fail> {
        Ok(Config::load_with(self.global.config.as_deref(), &self.env, flags)?)
    }

    /// The URL of the database: named, configured, or the embedded one as `role`.
    fn database_url(&self, config: &Config, role: &str) -> Result<String, Fail> {
        if let Some(url) = &self.global.database_url {
            return Ok(config.with_password(url));
        }
        if !config.database_url().is_empty() {
            return Ok(config.database_url().to_owned());
        }
        if self.layout.is_running() {
            return Ok(self.layout.url(role));
        }
        Err(Fail::Usage(format!(
            "no database is named and no `bigbrotr up` runs on {}: pass --database-url, set DATABASE_URL, or start `bigbrotr up`",
            self.layout.dir().display()
        )))
    }

    /// Who calls, for the audit.
    fn user(&self) -> String {
        self.env.get("USER").map_or_else(|| "operator".to_owned(), String::clone)
    }

    /// Connects to it.
    async fn database(&self, config: &Config, role: &str) -> Result<Db, Fail> {
        Ok(Db::connect(&self.database_url(config, role)?, "bigbrotr", CONNECTIONS).await?)
    }
}

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let env = Config::environment();
    let layout = Layout::new(global.data.as_deref(), &env);
    let session = Session { global, env, layout };
    match run(&session, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(),
    }
}

/// The runtime runs on this thread and the ones it makes: the embedded server must be started from this
/// one, which lives as long as the process.
fn run(session: &Session, command: Command) -> Result<(), Fail> {
    let local = match &command {
        Command::Up(up) => up.allow_local,
        Command::Seed(seed) => seed.allow_local,
        Command::Check(check) => check.allow_local,
        Command::Url(url) => url.allow_local,
        Command::Import(import) => import.allow_local,
        Command::Publish(Publish::Preview { allow_local, .. }) => *allow_local,
        _ => false,
    };
    let allow_local = Flag { key: "network.allow_local", value: "true".to_owned(), name: "--allow-local" };
    let flags = if local { vec![allow_local] } else { Vec::new() };
    let config = session.config(&flags)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Fail::Failed(format!("the runtime cannot start: {error}")))?;
    if let Command::Up(up) = command {
        return up::run(session, &config, flags, &up, &runtime);
    }
    process::prepare(&config);
    runtime.block_on(Box::pin(dispatch(session, &config, command)))
}

async fn dispatch(session: &Session, config: &Config, command: Command) -> Result<(), Fail> {
    match command {
        Command::Up(_) => Ok(()),
        Command::Migrate(args) => commands::migrate(session, config, &args).await,
        Command::Seed(args) => commands::seed(session, config, &args).await,
        Command::Check(args) => commands::check(session, config, &args).await,
        Command::Url(args) => commands::url(session, config, &args),
        Command::Relay(args) => commands::relay(session, config, &args).await,
        Command::Event(args) => commands::event(session, config, &args).await,
        Command::Export(args) => commands::export(session, config, &args).await,
        Command::Import(args) => commands::import(session, config, &args).await,
        Command::Candidate(args) => commands::candidate(session, config, &args).await,
        Command::Publish(args) => commands::publish(session, config, &args).await,
        Command::Alerts(args) => commands::alerts(session, config, &args).await,
        Command::Queue(args) => commands::queue(session, config, &args).await,
        Command::Why(args) => commands::why(session, config, &args).await,
        Command::Top(args) => commands::top(session, config, &args).await,
        Command::Autoscale(args) => commands::autoscale(session, config, &args).await,
        Command::Doctor(args) => commands::doctor(session, config, &args).await,
        Command::Verify(args) => commands::verify(session, config, &args).await,
        Command::Retention(args) => commands::retention(session, config, &args).await,
        Command::Archive(args) => commands::archive(session, config, &args).await,
        Command::Config(args) => commands::config(session, config, &args),
        Command::Health(args) => commands::health(session, config, &args).await,
    }
}
