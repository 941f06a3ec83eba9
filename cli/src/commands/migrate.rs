//! `migrate`: brings a database to this program's schema.

use std::collections::BTreeMap;

use serde_json::json;
use shared::config::{Config, redact_url};
use shared::db::{Db, MigrateOptions};
use shared::queue;

use crate::args::Migrate;
use crate::output::{Fail, line, warn};
use crate::{CONNECTIONS, Session};

/// Most bytes of a password: what the keys that log in with one take.
const PASSWORD_BYTES_MAX: usize = 256;
/// The four roles, by the last part of their names.
const ROLES: [&str; 4] = ["admin", "writer", "refresher", "reader"];

pub(crate) async fn migrate(session: &Session, config: &Config, args: &Migrate) -> Result<(), Fail> {
    let url = match &session.global.database_url {
        Some(url) => config.with_password(url),
        None if !config.direct_url().is_empty() => config.direct_url().to_owned(),
        None => {
            return Err(Fail::Usage(
                "no database is named: pass --database-url or set DATABASE_URL".to_owned(),
            ));
        }
    };
    let named = args.role_prefix.as_ref().or_else(|| session.env.get("BIGBROTR_ROLE_PREFIX"));
    let mut options =
        MigrateOptions { passwords: role_passwords(&session.env)?, ..MigrateOptions::default() };
    if let Some(prefix) = named.filter(|prefix| !prefix.is_empty()) {
        options.prefix.clone_from(prefix);
    }
    queue::migrate(&url, &options).await?;
    let db = Db::connect(&url, "bigbrotr migrate", CONNECTIONS).await?;
    let version = db.schema_version().await?;
    let roles: Vec<String> = ROLES.iter().map(|role| format!("{}_{role}", options.prefix)).collect();
    if session.global.json {
        line(&json!({ "database": redact_url(&url), "schema": version, "roles": roles }).to_string());
    } else {
        line(&format!(
            "{} has schema version {version} and the roles {}",
            redact_url(&url),
            roles.join(", ")
        ));
    }
    Ok(())
}

/// Passwords named in the environment, or in files it names, as (role, password).
pub(crate) fn role_passwords(env: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, Fail> {
    let mut passwords = Vec::new();
    for (name, value) in Config::with_files(env)?.iter().filter(|(_, value)| !value.is_empty()) {
        let role = name.strip_prefix("BIGBROTR_").and_then(|rest| rest.strip_suffix("_PASSWORD"));
        match role.map(str::to_lowercase) {
            // One that no program of ours could log in with.
            Some(role)
                if ROLES.contains(&role.as_str())
                    && (value.contains(char::is_control) || value.len() > PASSWORD_BYTES_MAX) =>
            {
                return Err(Fail::Usage(format!(
                    "{name} is ***: it must be a text of 1 to {PASSWORD_BYTES_MAX} bytes without control characters"
                )));
            }
            Some(role) if ROLES.contains(&role.as_str()) => passwords.push((role, value.clone())),
            // Our own, for logging in.
            Some(role) if role == "database" => {}
            Some(_) => warn(&format!("{name} names no role of ours and is ignored")),
            None => {}
        }
    }
    Ok(passwords)
}
