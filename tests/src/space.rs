//! Namespaces of the kernel, for what must have a network or files of its own.
//!
//! Invariant: nothing here changes the machine: addresses, routes and files in place of others are seen by the
//! processes inside only, and are gone with them.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether this process is root, who needs no namespace of users for the others.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// `program` in new namespaces, named by the letters of `unshare`; a visible skip where they cannot be made.
pub(crate) fn unshared(letters: &str, program: &Path) -> Option<Command> {
    let flags = format!("-{}{letters}", if is_root() { "" } else { "r" });
    let tried = Command::new("unshare").args([&flags, "true"]).stderr(Stdio::null()).status();
    let possible = tried.is_ok_and(|status| status.success()).then_some(());
    crate::require(possible, "namespaces (root, or a kernel that lets users make them)")?;
    let mut command = Command::new("unshare");
    command.args([&flags, "--"]).arg(program);
    Some(command)
}

/// `command` in the namespaces of the process `pid`, of network and files.
pub(crate) fn within(pid: u32, command: &Command) -> Command {
    let mut inside = Command::new("nsenter");
    inside.args(["--target", &pid.to_string(), "--net", "--mount"]);
    if !is_root() {
        inside.args(["--user", "--preserve-credentials"]);
    }
    inside.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// Whether a program is installed, also where only root looks for it.
pub(crate) fn installed(name: impl AsRef<OsStr>) -> bool {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/sbin", "/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(name.as_ref()).exists())
}
