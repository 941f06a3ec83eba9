//! Child processes that end with their handle, and what the kernel knows about processes.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// Clock ticks per second in `/proc/*/stat`: 100 on every Linux, whatever the kernel's own tick.
const TICKS_PER_S: f64 = 100.0;

/// Killed by its pid when dropped, and by the kernel if this program dies first.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Process {
    /// Runs `command` without input and output; its complaints are ours.
    pub(crate) fn start(command: &Command) -> anyhow::Result<Self> {
        let mut guarded = Command::new("setpriv");
        guarded.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        guarded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = guarded.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// An error if it has ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            Some(status) => anyhow::bail!("a process of the benchmark ended by itself: {status}"),
            None => Ok(()),
        }
    }

    /// Resident memory.
    pub(crate) fn rss_mib(&self) -> anyhow::Result<f64> {
        self.memory_mib("VmRSS:")
    }

    /// The most resident memory it has had.
    pub(crate) fn peak_mib(&self) -> anyhow::Result<f64> {
        self.memory_mib("VmHWM:")
    }

    fn memory_mib(&self, field: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("the process has ended")?;
        let kib: f64 = line.split_whitespace().nth(1).context("memory has a value")?.parse()?;
        Ok(kib / 1024.0)
    }
}

/// Processor seconds of a process, all its threads together; nothing for one that is gone.
pub(crate) fn cpu_s(pid: u32) -> f64 {
    Stat::of(pid).map_or(0.0, |stat| stat.own_s)
}

/// Processor seconds of a process, its children, and those of them that have ended.
pub(crate) fn family_cpu_s(pid: u32) -> f64 {
    loop {
        let before = Stat::of(pid);
        let Ok(entries) = fs::read_dir("/proc") else { return f64::NAN };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let children =
            pids.filter_map(Stat::of).filter(|stat| stat.parent == pid).map(|stat| stat.own_s).sum::<f64>();
        let after = Stat::of(pid);
        // A child that ends in between is counted twice, or not at all.
        if before.as_ref().map(|stat| stat.ended_s) == after.as_ref().map(|stat| stat.ended_s) {
            return children + after.map_or(0.0, |stat| stat.own_s + stat.ended_s);
        }
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    parent: u32,
    own_s: f64,
    /// Of children that have ended.
    ended_s: f64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the state follows, then the parent.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / TICKS_PER_S);
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own_s: seconds(11)? + seconds(12)?,
            ended_s: seconds(13)? + seconds(14)?,
        })
    }
}
