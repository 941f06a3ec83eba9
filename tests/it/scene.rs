//! A stage for real worker and scheduler processes: their database, their journal, and what can be said of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shared::db::NewJob;
use shared::models::JobKind;
use tests::journal::{Entry, read};
use tests::pg::{Role, TestDb};
use tests::programs::Process;

use super::support::{handle, job, migrated, value};

/// Everything of one scenario that must go away with it.
pub(crate) struct Scene {
    pub(crate) test: TestDb,
    dir: PathBuf,
    started: usize,
    door: Option<String>,
}

pub(crate) fn signal(process: &Process, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.pid().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "{name}");
}

impl Scene {
    pub(crate) async fn new() -> Option<Self> {
        let test = migrated().await?;
        Some(Self::on(test))
    }

    pub(crate) fn on(test: TestDb) -> Self {
        let dir = std::env::temp_dir().join(format!(
            "bigbrotr-chaos-{}-{}",
            std::process::id(),
            shared::clock::random_hex(4)
        ));
        std::fs::create_dir_all(&dir).unwrap();
        Self { test, dir, started: 0, door: None }
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Lets every process started from now on reach the database by this URL.
    pub(crate) fn through(&mut self, url: String) {
        self.door = Some(url);
    }

    fn url(&self) -> String {
        self.door.clone().unwrap_or_else(|| self.test.url(Role::Writer))
    }

    pub(crate) fn start(&mut self, command: &Command) -> Process {
        self.started += 1;
        Process::spawn(command, &self.last_log())
    }

    /// What the process started last writes.
    pub(crate) fn last_log(&self) -> PathBuf {
        self.dir.join(format!("log{}", self.started))
    }

    pub(crate) fn worker(&mut self, work_ms: u32, grace_s: u32) -> Process {
        self.start(&self.worker_command(work_ms, grace_s))
    }

    pub(crate) fn worker_command(&self, work_ms: u32, grace_s: u32) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_testrelay"));
        command.args(["worker", "--url", &self.url()]);
        command.args(["--work-ms", &work_ms.to_string(), "--grace-s", &grace_s.to_string()]);
        command.arg("--journal").arg(self.journal());
        command
    }

    pub(crate) fn scheduler(&mut self) -> Process {
        self.start(&self.scheduler_command())
    }

    pub(crate) fn scheduler_command(&self) -> Command {
        let binary = Path::new(env!("CARGO_BIN_EXE_testrelay")).with_file_name("scheduler");
        let mut command = Command::new(binary);
        command.arg("run").env("DATABASE_URL", self.url());
        command.env("BIGBROTR_SCHEDULER_TICK_MS", "100").env("BIGBROTR_SCHEDULER_LEASE_S", "2");
        command
    }

    pub(crate) async fn enqueue(&self, targets: impl Iterator<Item = String>, timeout_s: u64, attempts: u16) {
        let jobs: Vec<NewJob> = targets
            .map(|target| NewJob {
                timeout: Duration::from_secs(timeout_s),
                max_attempts: attempts,
                ..job(JobKind::Refresh, &target)
            })
            .collect();
        assert_eq!(handle(&self.test, Role::Writer).job_enqueue(&jobs).await.unwrap(), jobs.len() as u64);
    }

    /// Waits until `sql` says `wanted`.
    pub(crate) async fn until(&self, sql: &'static str, wanted: &str, seconds: u32) {
        let mut seen = String::new();
        for _ in 0..seconds * 10 {
            seen = value(&self.test, sql).await;
            if seen == wanted {
                return;
            }
            // bound: the seconds given
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{sql}: {seen}, not {wanted}");
    }

    /// Attempts of one job never overlap: each began after the one before it had ended, where that lived to say so.
    pub(crate) fn attempts_are_apart(&self) {
        let mut jobs: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for entry in read(&self.journal()) {
            jobs.entry(entry.job.clone()).or_default().push(entry);
        }
        for (job, entries) in jobs {
            for ended in entries.iter().filter(|entry| !entry.began) {
                let later = entries.iter().filter(|entry| entry.began && entry.attempt > ended.attempt);
                assert!(later.clone().all(|began| began.at >= ended.at), "{job}: {entries:?}");
            }
            for attempt in entries.iter().filter(|entry| entry.began).map(|entry| entry.attempt) {
                let times = entries.iter().filter(|entry| entry.began && entry.attempt == attempt).count();
                assert_eq!(times, 1, "{job}: attempt {attempt} began {times} times");
            }
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

pub(crate) const COMPLETE: &str = "SELECT count(DISTINCT target) || ' ' || count(*) FROM job_history WHERE state = 'complete' AND target LIKE 't%'";
