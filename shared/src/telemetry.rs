//! Logs and metrics: one subscriber, one registry, names from one enum, labels from closed sets.
//!
//! A relay URL, an event's content or a key is never a label; keys are never logged.

mod health;
mod metric;
mod metrics;
mod outage;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use health::Health;
pub use metric::{Metric, MetricKind, MetricOf, metric_lines};
pub use metrics::{Labels, Metrics};
pub use outage::Outage;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// JSON lines instead of text.
    pub json: bool,
    /// Most detailed level shown for our own code.
    pub level: Level,
}

/// Installs the process's subscriber, writing to standard error; a second call does nothing.
pub fn init(options: LogOptions) {
    let targets = Targets::new()
        .with_default(Level::WARN)
        .with_targets([
            ("shared", options.level),
            ("scheduler", options.level),
            ("worker", options.level),
            ("bigbrotr", options.level),
        ])
        // hickory warns about every odd answer of a hostile name server; those are outcomes of ours.
        .with_targets([
            ("hickory_proto", Level::ERROR),
            ("hickory_resolver", Level::ERROR),
            ("hickory_net", Level::ERROR),
            // Notices of the server while roles are granted what they have already.
            ("sqlx", Level::ERROR),
        ]);
    let registry = tracing_subscriber::registry().with(targets);
    let result = if options.json {
        registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init()
    } else {
        registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_target(false)
                    .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                    .with_writer(std::io::stderr),
            )
            .try_init()
    };
    drop(result);
}
