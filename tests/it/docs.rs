//! The documents name what is there: tests, tables, views, functions, metrics, jobs, and SQL that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use shared::jobs::JOBS;
use sqlx::{AssertSqlSafe, Connection as _};
use tests::pg::Role;

use super::support::{migrated, pairs};

/// Named by PostgreSQL's own shapes: not partitions, not what an extension brought.
const RELATIONS: &str = "SELECT c.relname::text, c.relkind::text FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition";
const FUNCTIONS: &str = "SELECT p.proname::text, 'f' FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')";
/// A view and its columns in order, as the document writes them.
const VIEWS: &str = "SELECT c.relname::text, ' ' || (
        SELECT string_agg('`' || a.attname || '`', ', ' ORDER BY a.attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0) || ' '
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('v', 'm')";

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The part of a document from one heading to the next of the same depth.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    let next = format!("\n{} ", heading.split(' ').next().unwrap());
    rest.split(&next).next().unwrap()
}

/// Rows of tables: the first cell's quoted words, and the cells behind it.
fn rows(text: &str) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let (first, rest) = line[1..].split_once('|').unwrap();
        for name in quoted(first) {
            rows.insert(name, rest.to_owned());
        }
    }
    rows
}

fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Tests written as `path.rs::name`.
fn named_tests(text: &str) -> Vec<(String, String)> {
    let split = |word: String| {
        let (path, name) = word.split_once(".rs::")?;
        Some((format!("{path}.rs"), name.to_owned()))
    };
    quoted(text).into_iter().filter_map(split).collect()
}

fn difference(of: &BTreeSet<String>, without: &BTreeSet<String>) -> Vec<String> {
    of.difference(without).cloned().collect()
}

#[test]
fn every_test_named_by_the_documents_exists() {
    let text = read("docs/ARCHITECTURE.md");
    let invariants = section(&text, "## Invariants");
    let mut numbers = vec![];
    for line in invariants.lines() {
        let Some((number, rule)) = line.split_once(". ") else { continue };
        if let Ok(number) = number.parse::<usize>() {
            numbers.push(number);
            assert!(!named_tests(rule).is_empty(), "RULE: an invariant names its test: {line}");
        }
    }
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>(), "invariants are numbered in order");
    let mut documents = text;
    for path in [
        "001-apalis",
        "002-storage-shape",
        "003-proof",
        "004-own-network-first",
        "005-fleet",
        "006-storage",
        "007-rollups",
        "008-operations",
    ] {
        documents += &read(&format!("docs/adr/{path}.md"));
    }
    let gone: Vec<_> = named_tests(&documents)
        .into_iter()
        .filter(|(path, name)| !read(path).contains(&format!("fn {name}(")))
        .collect();
    assert!(gone.is_empty(), "docs name tests that are not there: {gone:?}");
}

#[tokio::test]
async fn the_schema_document_is_the_schema() {
    let Some(db) = migrated().await else { return };
    let text = read("docs/SCHEMA.md");
    let parts = |heading, below: &str| -> BTreeSet<String> {
        rows(section(&text, heading).split(below).next().unwrap()).into_keys().collect()
    };
    let mut written = parts("## Tables", "### Partitions");
    written.extend(parts("## Views", "\u{0}"));
    written.extend(parts("## Functions", "\u{0}"));
    let mut present: BTreeSet<String> = pairs(&db, RELATIONS).await.into_keys().collect();
    present.extend(pairs(&db, FUNCTIONS).await.into_keys());
    let (missing, gone) = (difference(&present, &written), difference(&written, &present));
    assert!(missing.is_empty() && gone.is_empty(), "docs/SCHEMA.md lacks {missing:?} and invents {gone:?}");

    let views = rows(section(&text, "## Views"));
    for (view, shape) in pairs(&db, VIEWS).await {
        assert!(views[&view].starts_with(&shape), "docs/SCHEMA.md: {view} is{shape}");
    }
    let roles: BTreeSet<String> = rows(section(&text, "## Roles")).into_keys().collect();
    assert_eq!(roles, Role::MADE.iter().filter_map(|role| role.user()).collect());
}

#[test]
fn the_operations_document_has_every_job() {
    let text = read("docs/OPERATIONS.md");
    let jobs = rows(section(&text, "## Jobs"));
    for spec in JOBS {
        let figures = format!(" {} | {} | {} |", spec.timeout.as_secs(), spec.max_attempts, spec.slots);
        assert_eq!(jobs.get(spec.kind.as_str()), Some(&figures), "docs/OPERATIONS.md: {}", spec.kind);
    }
}

#[tokio::test]
async fn the_sql_for_operators_runs_as_the_reader() {
    let Some(db) = migrated().await else { return };
    let mut reader = db.connect(Role::Reader).await;
    for path in ["docs/OPERATIONS.md", "docs/MONITORING.md"] {
        let text = read(path);
        let statements: Vec<&str> =
            text.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        assert!(!statements.is_empty());
        for sql in statements {
            let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut reader).await;
            assert!(ran.is_ok(), "{path}: {sql}{ran:?}");
        }
    }
    reader.close().await.unwrap();
}
