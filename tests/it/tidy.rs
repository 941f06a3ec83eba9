//! Rules about the sources themselves, each failing with its own text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Rooms of `shared` in layer order; a room may use those of the ranks above its own, and itself.
/// Rooms of one rank never see one another, but for the first pair: telemetry stands on the clock.
const RANKS: &[&[&str]] = &[
    &["models"],
    &["clock"],
    &["telemetry"],
    &["db", "nips", "net"],
    &["relay"],
    &["checks"],
    &["jobs"],
    &["queue"],
    &["config"],
    &["process"],
];

/// Every file can be read in one sitting.
const LINES_MAX: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files with this ending below a folder, sources only.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut found = vec![];
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && name != "node_modules" && !name.starts_with('.') {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The path as people write it, from the repository's root.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Source text with comments, strings and character literals blanked; lines stay where they are.
fn code_of(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => source[at..].find('\n').map_or(bytes.len(), |length| at + length),
            [b'/', b'*', ..] => end_of_block_comment(bytes, at),
            [b'r', b'"' | b'#', ..] if !(at > 0 && is_word(bytes[at - 1])) => end_of_raw_string(source, at),
            [b'"', ..] => end_of_string(bytes, at),
            [b'\'', b'\\', ..] => end_of_quoted(bytes, at + 2, b'\''),
            [b'\'', _, b'\'', ..] => at + 3,
            _ => at,
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn end_of_block_comment(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" if depth == 1 => return at + 2,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    bytes.len()
}

fn end_of_raw_string(source: &str, start: usize) -> usize {
    let hashes = source[start + 1..].bytes().take_while(|byte| *byte == b'#').count();
    let body = start + 1 + hashes;
    if source.as_bytes().get(body) != Some(&b'"') {
        // A raw identifier, `r#type`.
        return start;
    }
    let closing = format!("\"{}", "#".repeat(hashes));
    source[body + 1..].find(&closing).map_or(source.len(), |length| body + 1 + length + closing.len())
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    end_of_quoted(bytes, start + 1, b'"')
}

fn end_of_quoted(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Every path in the code, with braces opened: `use a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths_of(code: &str) -> Vec<(usize, String)> {
    let mut found = vec![];
    for (number, statement) in statements(code) {
        let packed: String = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(tree) =
            packed.strip_prefix("use ").or_else(|| packed.split_once(" use ").map(|parts| parts.1))
        {
            open_braces("", tree, &mut |path| found.push((number, path)));
        }
    }
    for (index, line) in code.lines().enumerate() {
        let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        found.extend(words.filter(|word| word.contains("::")).map(|word| (index + 1, word.to_owned())));
    }
    found
}

/// Pieces between semicolons with the line each begins at; enough to hold every `use`.
fn statements(code: &str) -> Vec<(usize, String)> {
    let mut line = 1;
    let mut pieces = vec![];
    for piece in code.split_inclusive(';') {
        let blank = piece.len() - piece.trim_start().len();
        pieces.push((line + piece[..blank].matches('\n').count(), piece.trim_end_matches(';').to_owned()));
        line += piece.matches('\n').count();
    }
    pieces
}

fn open_braces(prefix: &str, tree: &str, report: &mut impl FnMut(String)) {
    let Some((head, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        return report(format!("{prefix}{path}"));
    };
    let prefix = format!("{prefix}{}", head.trim());
    let inner = rest.rsplit_once('}').map_or(rest, |parts| parts.0);
    let (mut depth, mut begin) = (0, 0);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                open_braces(&prefix, &inner[begin..at], report);
                begin = at + 1;
            }
            _ => {}
        }
    }
    open_braces(&prefix, &inner[begin..], report);
}

/// The module a file of `shared/src` is: `db/mod.rs` is `[db]`, `db/event.rs` is `[db, event]`.
fn module_of(file: &Path, source_root: &Path) -> Vec<String> {
    let relative = file.strip_prefix(source_root).unwrap().with_extension("");
    let mut module: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    module
}

/// The room a path leads to, seen from a module; `None` for other crates and local names.
fn room_of(path: &str, module: &[String]) -> Option<String> {
    let mut parts = path.split("::").map(str::trim).peekable();
    let first = parts.next()?;
    if first == "crate" || first == "shared" {
        return parts.next().map(str::to_owned);
    }
    if first != "super" {
        return None;
    }
    let mut ups = 1;
    while parts.next_if_eq(&"super").is_some() {
        ups += 1;
    }
    let left = module.len().saturating_sub(ups);
    if module.len() >= ups && left == 0 { parts.next().map(str::to_owned) } else { module.first().cloned() }
}

fn rank_of(room: &str) -> Option<usize> {
    RANKS.iter().position(|rank| rank.contains(&room))
}

/// What the layer rule says against a file's code; empty when it holds.
fn layer_breaches(module: &[String], code: &str) -> Vec<(usize, String)> {
    let Some(rank) = module.first().and_then(|room| rank_of(room)) else { return vec![] };
    let own = &module[0];
    // From here on `super` is the file itself: tests are the last thing in a file.
    let tests = code.find("mod tests {").map_or(usize::MAX, |at| 1 + code[..at].matches('\n').count());
    let in_tests: Vec<String> = module.iter().cloned().chain(["tests".to_owned()]).collect();
    let mut breaches = vec![];
    for (line, path) in paths_of(code) {
        let module = if line >= tests { &in_tests } else { module };
        let Some(room) = room_of(&path, module) else { continue };
        let Some(used) = rank_of(&room) else { continue };
        if room != *own && used >= rank {
            breaches.push((line, format!("{own} uses {path}, of {room}")));
        }
    }
    breaches.dedup();
    breaches
}

#[test]
fn rooms_use_only_the_layers_before_them() {
    let source_root = root().join("shared/src");
    let mut breaches = vec![];
    for file in files(&source_root, "rs") {
        let code = code_of(&fs::read_to_string(&file).unwrap());
        for (line, breach) in layer_breaches(&module_of(&file, &source_root), &code) {
            breaches.push(format!("{}:{line}: {breach}", shown(&file)));
        }
    }
    assert!(
        breaches.is_empty(),
        "RULE: models → clock → telemetry → {{db, nips, net}} → relay → checks → jobs → queue → config; \
         a room uses only rooms before it, and db, nips, net never see one another.\n{}",
        breaches.join("\n")
    );
}

#[test]
fn every_room_has_a_rank() {
    let lib = code_of(&fs::read_to_string(root().join("shared/src/lib.rs")).unwrap());
    let rooms = lib.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    let unranked: Vec<&str> = rooms.filter(|room| rank_of(room).is_none()).collect();
    assert!(
        unranked.is_empty(),
        "RULE: every room of shared has its place in RANKS (tests/it/tidy.rs): {unranked:?}"
    );
}

#[test]
fn layer_rule_sees_paths_braces_and_supers() {
    let db = ["db".to_owned(), "event".to_owned()];
    let breaches = |code: &str| layer_breaches(&db, &code_of(code)).len();
    assert_eq!(breaches("use crate::models::Event;"), 0);
    assert_eq!(breaches("use crate::{models::Event, clock};"), 0);
    assert_eq!(breaches("use crate::net::dial;"), 1);
    assert_eq!(breaches("use crate::{models::{Event, EventId}, nips::filter};"), 1);
    assert_eq!(breaches("fn f() { crate::relay::open() }"), 1);
    assert_eq!(breaches("use super::super::queue::Claim;"), 1);
    assert_eq!(breaches("use super::rows::Row;"), 0);
    assert_eq!(breaches("mod tests { use super::*; }"), 0);
    assert_eq!(breaches("mod tests { use super::super::config::A; }"), 0);
    assert_eq!(breaches("mod tests { use super::super::super::config::A; }"), 1);
    assert_eq!(breaches("// see crate::queue\nconst A: &str = \"crate::queue::x\";"), 0);
    assert_eq!(breaches("const A: &str = r#\"crate::queue::x \" \"#; const B: char = '\"';"), 0);
}

/// Where apalis may be named outside `shared/src/queue`: the peer of the queue's figures is apalis-postgres as
/// shipped, and what is measured in the same run has to be run there.
const PEER: &str = "bench/src/queue/peer.rs";

#[test]
fn only_the_queue_and_its_peer_name_apalis() {
    let source_root = root().join("shared/src");
    let mut sources = files(&source_root, "rs");
    for folder in ["scheduler", "worker", "cli", "bench"] {
        sources.extend(files(&root().join(folder), "rs"));
    }
    let named: Vec<String> = sources
        .iter()
        .filter(|file| !file.starts_with(source_root.join("queue")) && **file != source_root.join("queue.rs"))
        .filter(|file| **file != root().join(PEER))
        .filter(|file| code_of(&fs::read_to_string(file).unwrap()).contains("apalis"))
        .map(|file| shown(file))
        .collect();
    assert!(
        named.is_empty(),
        "RULE: only shared/src/queue names apalis (ADR-001), and {PEER}; these do too: {named:?}"
    );
    assert!(root().join(PEER).exists(), "RULE: {PEER} is the peer; name its new place here");
}

#[test]
fn no_source_file_is_longer_than_the_limit() {
    let long: Vec<String> = files(&root(), "rs")
        .iter()
        .map(|file| (fs::read_to_string(file).unwrap().lines().count(), shown(file)))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, file)| format!("{file}: {lines}"))
        .collect();
    assert!(long.is_empty(), "RULE: a source file has at most {LINES_MAX} lines; split these: {long:?}");
}

#[test]
fn tests_do_not_sleep_without_a_bound() {
    let mut sources = files(&root().join("tests"), "rs");
    sources.extend(files(&root().join("shared/src"), "rs"));
    let mut bare = vec![];
    for file in sources {
        let source = fs::read_to_string(&file).unwrap();
        let code = code_of(&source);
        // In `shared` only the tests below the code are meant.
        let begin = if file.starts_with(root().join("tests")) {
            0
        } else {
            code.find("mod tests").unwrap_or(code.len())
        };
        let first = code[..begin].matches('\n').count();
        let lines: Vec<&str> = source.lines().collect();
        for (index, line) in code.lines().enumerate().skip(first).filter(|(_, line)| line.contains("sleep("))
        {
            let explained =
                line.contains("fn ") || lines[index.saturating_sub(2)..=index].join("\n").contains("bound:");
            if !explained {
                bare.push(format!("{}:{}", shown(&file), index + 1));
            }
        }
    }
    assert!(bare.is_empty(), "RULE: a test waits for a condition; a sleep says its `// bound:`: {bare:?}");
}

#[test]
fn migrations_are_append_only() {
    let folder = root().join("migrations");
    let listed = fs::read_to_string(folder.join("CHECKSUMS")).unwrap_or_default();
    let listed: BTreeMap<String, String> = listed
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(hash, name)| (name.to_owned(), hash.to_owned()))
        .collect();
    let present: BTreeMap<String, String> = files(&folder, "sql")
        .iter()
        .map(|file| {
            let name = file.strip_prefix(&folder).unwrap().display().to_string();
            (name, hex::encode(Sha256::digest(fs::read(file).unwrap())))
        })
        .collect();
    let names: BTreeSet<&String> = present.keys().chain(listed.keys()).collect();
    let differ: Vec<_> = names.into_iter().filter(|name| present.get(*name) != listed.get(*name)).collect();
    assert!(
        differ.is_empty(),
        "RULE: a released migration is never changed; a new one is added to migrations/CHECKSUMS \
         by (cd migrations && sha256sum NAME >> CHECKSUMS). Not as listed: {differ:?}"
    );
}

#[test]
fn a_package_that_has_unit_tests_runs_them() {
    let tested = |folder: &Path| {
        let sources = files(&folder.join("src"), "rs");
        sources.iter().any(|path| code_of(&fs::read_to_string(path).unwrap()).contains("#[cfg(test)]"))
    };
    let manifests = files(&root(), "toml").into_iter().filter(|path| path.ends_with("Cargo.toml"));
    let silent: Vec<String> = manifests
        .filter(|path| {
            // Of a package with a library its tests are there; a program next to it is a few lines.
            let text = fs::read_to_string(path).unwrap();
            let target = text.split_once("[lib]").or_else(|| text.split_once("[[bin]]"));
            let target = target.map_or("", |(_, rest)| rest.split("\n[").next().unwrap());
            target.lines().any(|line| line == "test = false") && tested(path.parent().unwrap())
        })
        .map(|path| shown(&path))
        .collect();
    assert!(silent.is_empty(), "these have tests that never run: {silent:?}");
}
