//! The original's probes against the same fleet, in its own loop: chunks of 100, thirty at a time.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Options;
use super::mock::{Conduct, Fleet};
use super::scene::Stage;
use crate::peer;

pub(super) const AGAINST: &str = "bigbrotr 6.6.9: its probes in its loop, once, with its fallback for unknown authorities, without database, queue and publishing";

/// What the peer showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) per_s: f64,
    pub(super) cpu_s_per_1k: f64,
    pub(super) peak_mib: f64,
    /// Healthy relays it called something else.
    pub(super) missed: f64,
    /// Servers it took for relays that are none.
    pub(super) wrong: f64,
}

/// Runs it once: it is slow.
pub(super) fn measure(
    options: &Options,
    stage: &Stage,
    what: &str,
    relays: &[(Conduct, u16)],
) -> anyhow::Result<Peer> {
    if options.no_peer {
        let none = f64::NAN;
        return Ok(Peer { per_s: none, cpu_s_per_1k: none, peak_mib: none, missed: none, wrong: none });
    }
    let python = peer::python()?;
    let (mut urls, mut hosts) = (String::new(), String::from("127.0.0.1 localhost\n"));
    for (conduct, n) in relays {
        writeln!(urls, "{}", stage.fleet.url(*conduct, *n))?;
        hosts.push_str(&Fleet::hosts_line(*conduct, *n));
    }
    let (list, names) = (stage.dir.join("urls"), stage.dir.join("hosts"));
    std::fs::write(&list, urls)?;
    std::fs::write(&names, hosts)?;
    // It asks the system for names: a hosts file of its own, in a mount namespace of its own.
    let script = "mount --bind \"$1\" /etc/hosts && exec \"$2\" \"$3\" \"$4\" \"$5\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&names)
        .arg(&python)
        .arg(peer::tool("peer_census.py"))
        .arg(what)
        .arg(&list)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the peer failed");
    let said = String::from_utf8(output.stdout)?;
    let said: Value = serde_json::from_str(said.lines().last().context("the peer said nothing")?)?;
    let number = |key: &str| said[key].as_f64().with_context(|| format!("the peer did not say {key}"));
    Ok(Peer {
        per_s: number("per_s")?,
        cpu_s_per_1k: number("cpu_s_per_1k")?,
        peak_mib: number("peak_mib")?,
        missed: number("missed")?,
        wrong: number("wrong")?,
    })
}
