//! `seed`: relay URLs become candidates.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shared::config::Config;
use shared::jobs::seed as seeder;
use shared::models::{AddressPolicy, RelayUrl};

use crate::Session;
use crate::args::Seed;
use crate::output::{Fail, line, warn};

/// Lists as read, together.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    /// Canonical URLs, in order.
    pub(crate) urls: Vec<RelayUrl>,
    /// Lines that repeat an earlier one of their list.
    pub(crate) repeated: usize,
    /// Lines refused, as objects.
    pub(crate) malformed: Vec<Value>,
    /// Files that could not be read.
    pub(crate) unread: Vec<String>,
    /// Where they came from, for people.
    pub(crate) names: String,
}

pub(crate) async fn seed(session: &Session, config: &Config, args: &Seed) -> Result<(), Fail> {
    let lists = read_lists(&args.files, &config.policy())?;
    let db = session.database(config, "bigbrotr_writer").await?;
    let new = seeder::insert(&db, &lists.urls).await?;
    if session.global.json {
        let value = json!({
            "valid": lists.urls.len(), "new": new, "repeated": lists.repeated, "malformed": lists.malformed,
        });
        line(&value.to_string());
    } else {
        line(&format!("{}: {} valid URLs, {new} of them new candidates", lists.names, lists.urls.len()));
    }
    if lists.unread.is_empty() {
        Ok(())
    } else {
        Err(Fail::Failed(format!("not read: {}", lists.unread.join(", "))))
    }
}

/// Reads the files, or the shipped list when there are none; malformed lines go to standard error.
pub(crate) fn read_lists(files: &[PathBuf], policy: &AddressPolicy) -> Result<Lists, Fail> {
    let mut lists = Lists::default();
    if files.is_empty() {
        add(&mut lists, "the shipped list", seeder::SHIPPED, policy);
    }
    for file in files {
        let is_stdin = file == Path::new("-");
        let name = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
        match read(file) {
            Ok(text) => add(&mut lists, &name, &text, policy),
            Err(error) => {
                warn(&format!("{name} cannot be read: {error}"));
                lists.malformed.push(json!({ "file": name, "reason": error.to_string() }));
                lists.unread.push(name);
            }
        }
    }
    if lists.urls.is_empty() {
        Err(Fail::Failed("no valid relay URL was given".to_owned()))
    } else {
        Ok(lists)
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        bytes = std::fs::read(file)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn add(lists: &mut Lists, name: &str, text: &str, policy: &AddressPolicy) {
    let list = seeder::parse(text, policy);
    for bad in &list.bad {
        warn(&format!("{name}, line {}: {} ({})", bad.line, bad.reason, bad.text.escape_debug()));
        lists
            .malformed
            .push(json!({ "file": name, "line": bad.line, "text": bad.text, "reason": bad.reason }));
    }
    lists.urls.extend(list.urls);
    lists.repeated += list.repeated;
    lists.names = if lists.names.is_empty() { name.to_owned() } else { format!("{}, {name}", lists.names) };
}
