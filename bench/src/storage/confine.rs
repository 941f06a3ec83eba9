//! A memory limit over a server and the page cache it fills: data that do not fit have to be read again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The control group; it goes with its handle, after the server.
pub(super) struct Confined(PathBuf);

impl Confined {
    /// Puts a postmaster and what it has started into a group of its own.
    pub(super) fn to(postmaster: u32, mib: u32) -> anyhow::Result<Self> {
        let old = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = if old.is_dir() {
            (old, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let group = root.join(format!("bigbrotr-bench-{postmaster}"));
        fs::create_dir(&group)
            .context("no control group can be made: root and the memory controller are needed")?;
        let confined = Self(group);
        fs::write(confined.0.join(limit), (u64::from(mib) << 20).to_string())
            .context("the memory controller is off")?;
        let mut pids = vec![postmaster];
        for entry in fs::read_dir("/proc")? {
            let pid = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let parent = |pid: u32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
            };
            pids.extend(pid.filter(|pid| parent(*pid) == Some(postmaster)));
        }
        for pid in pids {
            fs::write(confined.0.join("cgroup.procs"), pid.to_string())
                .context("the server does not go into its group")?;
        }
        Ok(confined)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}
