//! One measured figure beside its reference and its goal, and the report they are printed in.

use serde_json::json;

/// What a figure must reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// Ours is at most this, in the figure's unit.
    AtMost(f64),
    /// Ours is less than this, in the figure's unit.
    Below(f64),
    /// Ours is at least this, in the figure's unit.
    AtLeast(f64),
    /// Ours is at most this many times the reference.
    RatioAtMost(f64),
    /// Ours is at least this many times the reference.
    RatioAtLeast(f64),
    /// Printed, not judged.
    Stated,
}

/// A figure: ours, the reference of the same run, and whether the goal is met.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) bench: &'static str,
    pub(crate) name: String,
    pub(crate) ours: f64,
    pub(crate) reference: f64,
    /// What the reference is.
    pub(crate) against: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
    pub(crate) n: u32,
}

impl Figure {
    /// One measurement that stands against nothing.
    pub(crate) const fn alone(
        bench: &'static str,
        name: String,
        ours: f64,
        unit: &'static str,
        goal: Goal,
    ) -> Self {
        Self { bench, name, ours, reference: f64::NAN, against: "nothing", unit, goal, n: 1 }
    }

    /// Ours as a share of the reference.
    fn ratio(&self) -> f64 {
        self.ours / self.reference
    }

    /// Whether the goal is met; never by a figure that is no number.
    pub(crate) fn ok(&self) -> bool {
        match self.goal {
            Goal::AtMost(limit) => self.ours <= limit,
            Goal::Below(limit) => self.ours < limit,
            Goal::AtLeast(limit) => self.ours >= limit,
            Goal::RatioAtMost(limit) => self.ratio() <= limit,
            Goal::RatioAtLeast(limit) => self.ratio() >= limit,
            Goal::Stated => self.ours.is_finite(),
        }
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtMost(limit) => format!("<= {limit}"),
            Goal::Below(limit) => format!("< {limit}"),
            Goal::AtLeast(limit) => format!(">= {limit}"),
            Goal::RatioAtMost(limit) => format!("ratio <= {limit}"),
            Goal::RatioAtLeast(limit) => format!("ratio >= {limit}"),
            Goal::Stated => "stated".to_owned(),
        }
    }

    /// One JSON object.
    fn json(&self) -> String {
        json!({
            "bench": self.bench, "figure": self.name, "ours": round(self.ours), "reference": round(self.reference),
            "ratio": round(self.ratio()), "unit": self.unit, "goal": self.goal_text(), "ok": self.ok(), "n": self.n,
            "against": self.against,
        })
        .to_string()
    }

    /// One line for people.
    fn line(&self) -> String {
        let verdict = match self.goal {
            Goal::Stated => "",
            _ if self.ok() => ": met",
            _ => ": MISSED",
        };
        format!(
            "{}.{}: {} {} ({} {} {}, ratio {:.3}); goal {}{verdict}",
            self.bench,
            self.name,
            digits(self.ours),
            self.unit,
            self.against,
            digits(self.reference),
            self.unit,
            self.ratio(),
            self.goal_text(),
        )
    }
}

/// Prints figures as they come, and remembers whether all is well.
#[derive(Debug, Default)]
pub(crate) struct Report {
    json: bool,
    failed: bool,
}

impl Report {
    /// Of JSON lines, or of lines for people.
    pub(crate) const fn new(json: bool) -> Self {
        Self { json, failed: false }
    }

    /// A figure was taken.
    pub(crate) fn add(&mut self, figure: &Figure) {
        if self.json {
            println!("{}", figure.json());
        } else {
            println!("{}", figure.line());
        }
        self.failed |= !figure.ok();
    }

    /// Figures could not be taken, which is a failure; the others go on.
    pub(crate) fn missing(&mut self, what: &str, why: &anyhow::Error) {
        eprintln!("bench: {what} is missing: {why:#}");
        self.failed = true;
    }

    /// Whether every figure was taken and met its goal.
    pub(crate) const fn ok(&self) -> bool {
        !self.failed
    }
}

/// The middle one of several measurements.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The smallest measurement that is not below `percent` of them; no number without measurements.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
    values.get(rank).copied().unwrap_or(f64::NAN)
}

/// To three places, and two more of what is small.
fn round(value: f64) -> f64 {
    let places = if value.abs() < 0.1 { 100_000.0 } else { 1_000.0 };
    (value * places).round() / places
}

/// As many digits as say something.
fn digits(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 1.0 {
        format!("{value:.1}")
    } else if value.abs() >= 0.1 {
        format!("{value:.3}")
    } else {
        format!("{value:.4}")
    }
}
