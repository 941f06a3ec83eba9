//! `config`: the configuration in force, every key there is, and every metric.

use serde_json::json;
use shared::config::{Config, key_lines};
use shared::telemetry::metric_lines;

use crate::Session;
use crate::args::ConfigArgs;
use crate::output::{Fail, line};

#[expect(clippy::unnecessary_wraps, reason = "every command has one shape")]
pub(crate) fn config(session: &Session, config: &Config, args: &ConfigArgs) -> Result<(), Fail> {
    if args.metrics {
        metrics(session.global.json);
        return Ok(());
    }
    match (args.keys, session.global.json) {
        (true, true) => {
            for [key, variable, default, range, doc] in key_lines() {
                let value = json!({ "key": key, "variable": variable, "default": default, "range": range, "meaning": doc });
                line(&value.to_string());
            }
        }
        (true, false) => {
            for [key, variable, default, range, doc] in key_lines() {
                let default = if default.is_empty() { "not set".to_owned() } else { default };
                line(&format!("{key}  ({variable})"));
                line(&format!("    {doc} Default: {default}. It must be {range}."));
            }
        }
        (false, true) => {
            for (key, value, origin) in config.entries() {
                line(&json!({ "key": key, "value": value, "origin": origin }).to_string());
            }
        }
        (false, false) => {
            match config.file() {
                Some(file) => line(&format!("# {}", file.display())),
                None => line("# no configuration file"),
            }
            line(config.to_redacted_toml().trim_end());
        }
    }
    Ok(())
}

fn metrics(json: bool) {
    for [name, kind, of, labels, says] in metric_lines() {
        if json {
            let value = json!({ "metric": name, "type": kind, "of": of, "labels": labels, "says": says });
            line(&value.to_string());
        } else {
            let labels = if labels.is_empty() { String::new() } else { format!("; labels: {labels}") };
            line(&format!("{name}  ({kind} of the {of}{labels})"));
            line(&format!("    {says}."));
        }
    }
}
