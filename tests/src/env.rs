//! What the scripts tell the tests, and how a test says that it cannot run here.
//!
//! Invariant: a skip is seen. It is printed, collected by `./test`, and a failure where `REQUIRE_ALL=1`.

use std::io::Write as _;
use std::path::PathBuf;

/// Admin URL of the private cluster (`tests/tools/pg.sh start`).
pub const TEST_PG: &str = "BIGBROTR_TEST_PG";

/// The variable's value; `None` when unset, empty or not text.
pub fn var(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "the scripts speak to the tests through the environment")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether nothing may be skipped here (CI).
pub fn require_all() -> bool {
    var("REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// Says that the calling test cannot run for want of `what`.
///
/// # Panics
/// Where `REQUIRE_ALL=1`: there a skipped test is a failed one.
pub fn skip(what: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(!require_all(), "{test} needs {what}, and REQUIRE_ALL=1 forbids skipping");
    let line = format!("SKIPPED {test}: {what}\n");
    let mut stderr = std::io::stderr();
    stderr.write_all(line.as_bytes()).expect("stderr can be written");
    if let Some(log) = var("BIGBROTR_SKIP_LOG") {
        let mut file = std::fs::File::options().append(true).create(true).open(&log).expect("skip log opens");
        file.write_all(line.as_bytes()).expect("skip log can be written");
    }
}

/// `Some(value)`, or a visible skip and `None`.
pub fn require<T>(value: Option<T>, what: &str) -> Option<T> {
    if value.is_none() {
        skip(what);
    }
    value
}

/// Where `tests/tools/setup.sh` put the relay programs; `None` before it ever ran.
pub fn testbed() -> Option<PathBuf> {
    if let Some(dir) = var("BIGBROTR_TESTBED") {
        return Some(PathBuf::from(dir));
    }
    let exe = std::env::current_exe().ok()?;
    exe.ancestors().map(|dir| dir.join("testbed")).find(|dir| dir.is_dir())
}

/// The folder of the scripts, `tests/tools`.
pub fn tools() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tools")
}

/// The built binary `testrelay`, looked for beside the running program and one folder above.
pub fn testrelay() -> Option<PathBuf> {
    if let Some(path) = var("NEXTEST_BIN_EXE_testrelay").or_else(|| var("TESTRELAY")) {
        return Some(PathBuf::from(path));
    }
    let exe = std::env::current_exe().ok()?;
    exe.ancestors().skip(1).take(2).map(|dir| dir.join("testrelay")).find(|path| path.is_file())
}

/// The library that shows a process another wall clock (`libfaketime`, the one for programs with threads), or a
/// visible skip.
pub fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let library = folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists());
    require(library, "libfaketime (tests/tools/setup.sh)")
}
