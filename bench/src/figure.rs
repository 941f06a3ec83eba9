//! One measured figure beside its reference and its goal.

use serde_json::json;

/// What a figure must reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// Ours is at most this, in the figure's unit.
    AtMost(f64),
}

/// A figure: ours, the reference of the same run, and whether the goal is met.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) bench: &'static str,
    pub(crate) name: &'static str,
    pub(crate) ours: f64,
    pub(crate) reference: f64,
    /// What the reference is.
    pub(crate) against: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
    pub(crate) n: u32,
}

impl Figure {
    /// Ours as a share of the reference.
    fn ratio(&self) -> f64 {
        self.ours / self.reference
    }

    /// Whether the goal is met.
    pub(crate) fn ok(&self) -> bool {
        let Goal::AtMost(limit) = self.goal;
        self.ours <= limit
    }

    fn goal_text(&self) -> String {
        let Goal::AtMost(limit) = self.goal;
        format!("<= {limit}")
    }

    /// One JSON object.
    pub(crate) fn json(&self) -> String {
        json!({
            "bench": self.bench, "figure": self.name, "ours": round(self.ours), "reference": round(self.reference),
            "ratio": round(self.ratio()), "unit": self.unit, "goal": self.goal_text(), "ok": self.ok(), "n": self.n,
            "against": self.against,
        })
        .to_string()
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}.{}: {:.1} {} ({} {:.1} {}, ratio {:.3}); goal {}: {}",
            self.bench,
            self.name,
            self.ours,
            self.unit,
            self.against,
            self.reference,
            self.unit,
            self.ratio(),
            self.goal_text(),
            if self.ok() { "met" } else { "MISSED" }
        )
    }
}

/// The middle one of several measurements.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
