//! The compose stack as far as it can be judged without an engine; `tests/compose/run` runs it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The variables of `text` with their defaults: `${NAME:-default}`.
fn variables(text: &str) -> BTreeMap<String, String> {
    let after = |piece: &str| {
        let (name, rest) = piece.split_once(":-")?;
        let (default, _) = rest.split_once('}')?;
        Some((name.to_owned(), default.to_owned()))
    };
    text.split("${")
        .skip(1)
        .map(|piece| after(piece).unwrap_or_else(|| panic!("a variable without a default: {piece:.30}")))
        .collect()
}

/// The lines `#NAME=default` of `text`.
fn examples(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (name, value) = line.strip_prefix('#')?.split_once('=')?;
        (!name.contains(' ')).then(|| (name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn every_variable_of_the_stack_is_in_the_example_with_its_default() {
    let (wanted, shown) = (variables(&read("compose.yaml")), examples(&read(".env.example")));
    assert!(wanted.len() > 20, "{wanted:?}");
    for (name, default) in &wanted {
        assert_eq!(shown.get(name), Some(default), "{name} in .env.example");
    }
    for name in shown.keys().filter(|name| !wanted.contains_key(*name)) {
        // What goes to our own programs, and what compose itself reads.
        assert!(name.starts_with("BIGBROTR_") || name == "COMPOSE_PROFILES", "nothing reads {name}");
    }
}

#[test]
fn every_secret_of_the_stack_is_made_by_the_script() {
    let (stack, script) = (read("compose.yaml"), read("deploy/secrets.sh"));
    let names = script.lines().find_map(|line| line.strip_prefix("for name in ")).unwrap();
    let made: Vec<&str> = names.trim_end_matches("; do").split(' ').collect();
    let listed = stack.split_once("\nsecrets:\n").unwrap().1;
    let wanted: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.trim().split_once("_password:"))
        .map(|(name, _)| name)
        .collect();
    assert!(wanted.len() > 5, "{wanted:?}");
    assert_eq!(made, wanted);
}

#[test]
fn wal_is_archived_whole_once_and_never_over_another_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = std::env::temp_dir().join(format!("bigbrotr-archive-{}", shared::clock::random_hex(6)));
    let wal = folder.join("wal");
    std::fs::create_dir_all(&wal).unwrap();
    let archive = |from: &str, name: &str| {
        let mut command = Command::new("sh");
        command.arg(root.join("deploy/postgres/archive.sh")).arg(folder.join(from)).arg(name).arg(&wal);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (whole, other) = ("segment ".repeat(500), "another ".repeat(500));
    std::fs::write(folder.join("ours"), &whole).unwrap();
    std::fs::write(folder.join("theirs"), &other).unwrap();
    let nothing = (true, String::new());
    // New, asked twice, and after copies that were cut short: under the name, and before.
    assert_eq!(archive("ours", "1"), nothing);
    assert_eq!(archive("ours", "1"), nothing);
    std::fs::write(wal.join("2"), &whole[..1_000]).unwrap();
    std::fs::write(wal.join("3"), "").unwrap();
    std::fs::write(wal.join("4.part"), "half of what").unwrap();
    for name in ["2", "3", "4"] {
        assert_eq!(archive("ours", name), nothing, "{name}");
    }
    // Another's: of the same length, a beginning of another, and longer.
    std::fs::write(wal.join("5"), &other[..1_000]).unwrap();
    std::fs::write(wal.join("6"), format!("{whole}more")).unwrap();
    for (from, name) in [("theirs", "1"), ("ours", "5"), ("ours", "6")] {
        let (done, said) = archive(from, name);
        assert!(!done && said.contains("is another file") && said.lines().count() == 1, "{name}: {said}");
    }
    for name in ["1", "2", "3", "4"] {
        assert_eq!(std::fs::read_to_string(wal.join(name)).unwrap(), whole, "{name}");
    }
    assert_eq!(std::fs::read_to_string(wal.join("5")).unwrap(), other[..1_000]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn no_image_floats() {
    for image in read("compose.yaml").lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
        let own = image.starts_with("${") && image.contains(":-bigbrotr");
        let version = image.rsplit_once(':').map_or("", |(_, version)| version);
        assert!(own || version.contains(|letter: char| letter.is_ascii_digit()), "{image} names no version");
    }
}

#[test]
fn a_backup_is_meant_from_where_the_caller_stands() {
    let script = tests::env::tools().join("../../deploy/backup.sh");
    let here = std::env::temp_dir();
    let ran = Command::new(script).args(["restore", "no/such.tar"]).current_dir(&here).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    let named = here.canonicalize().unwrap().join("no/such.tar");
    assert!(
        said.contains(&format!("{} is no backup", named.display())) && ran.status.code() == Some(2),
        "{said}"
    );
}

#[test]
fn whoever_reads_the_file_of_variables_is_told_where_the_proxies_are() {
    let stack = read("compose.yaml");
    let services = stack.split_once("\nservices:\n").unwrap().1.split_once("\nnetworks:\n").unwrap().0;
    let starts = services.match_indices("\n  ").map(|(at, _)| at).filter(|at| {
        let line = services[at + 3..].lines().next().unwrap_or_default();
        line.ends_with(':') && !line.starts_with([' ', '#'])
    });
    let mut ends: Vec<usize> = std::iter::once(0).chain(starts).collect();
    ends.push(services.len());
    let programs = ends
        .windows(2)
        .map(|pair| &services[pair[0]..pair[1]])
        .filter(|service| service.contains("*program"));
    let mut seen = 0;
    for service in programs {
        // The others stand in the fleet's.
        assert!(
            service.contains("*networks") || service.contains("*fleet"),
            "a network that is on has no proxy in{service}"
        );
        seen += 1;
    }
    assert_eq!(seen, 6, "migrate, seed, scheduler, worker, cli, admin");
}
