//! What a REQ is answered with.

use std::collections::HashSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::script::{Answer, Script, Stored};
use super::speech::Speech;

/// The events a REQ gets: those any of its filters asks for, at most the smallest of limit and cap.
pub(super) fn page<'a>(script: &'a Script, frame: &Value) -> Vec<&'a Stored> {
    let filters = frame.as_array().map(|frame| &frame[2..]).unwrap_or_default();
    let speech = &script.speech;
    let limit = filters.iter().filter_map(|filter| filter["limit"].as_u64()).max();
    let limit = match limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)) {
        None => speech.default_limit.unwrap_or(script.cap),
        Some(limit) if limit > script.cap => speech.above_cap.unwrap_or(script.cap),
        Some(limit) => limit,
    };
    if let Answer::Mute(serves_ids) = script.answer
        && !(serves_ids && filters.iter().all(|filter| filter["ids"].is_array()))
    {
        return vec![];
    }
    if speech.hides_ids && filters.iter().any(|filter| filter["ids"].is_array()) {
        return vec![];
    }
    if speech.searches && filters.iter().any(|filter| filter["search"].is_string()) {
        return vec![];
    }
    let filters: Vec<Value> = filters.iter().map(|filter| read(filter, speech)).collect();
    let ignores = script.answer == Answer::IgnoreFilter;
    let asked = |event: &&Stored| ignores || filters.iter().any(|filter| event.matches(filter));
    if script.answer == Answer::OldestFirst {
        return script.events.iter().rev().filter(asked).take(limit).collect();
    }
    let mut events: Vec<&Stored> = script.events.iter().filter(asked).collect();
    if let Answer::ByIdOnly(hidden) = &script.answer
        && !filters.iter().all(|filter| filter["ids"].is_array())
    {
        events.retain(|event| !event.id().is_some_and(|id| hidden.contains(&hex::encode(id))));
    }
    if let Answer::Subset(seed) | Answer::SortedSubset(seed) = script.answer {
        events.sort_by_cached_key(|event| Sha256::digest(format!("{seed} {frame} {}", event.json)));
    }
    events.truncate(limit);
    if matches!(script.answer, Answer::SortedSubset(_)) {
        events.sort_by_key(|event| std::cmp::Reverse(event.created_at()));
    }
    if script.answer == Answer::DropMiddle && events.len() >= 10 {
        let third = events.len() / 3;
        events.drain(third..2 * third);
    }
    events
}

/// The filter as the relay reads it: `until` as exclusive, without what it ignores, or as it is.
fn read(filter: &Value, speech: &Speech) -> Value {
    let mut filter = filter.clone();
    if let Some(until) = filter["until"].as_i64().filter(|_| speech.exclusive_until) {
        filter["until"] = json!(until - 1);
    }
    if let Some(fields) = filter.as_object_mut() {
        fields.retain(|name, _| !speech.ignores.contains(&name.as_str()));
    }
    filter
}

/// The same events, those that were sent before with another body, and, where `signs`, another signature.
pub(super) fn forge_repeats(sent: &mut HashSet<String>, events: Vec<&Stored>, signs: bool) -> Vec<Stored> {
    let forge = |event: &Stored| {
        let mut value: Value = serde_json::from_str(&event.json).unwrap_or_default();
        if sent.insert(value["id"].to_string()) {
            return event.clone();
        }
        value["content"] = json!("forged");
        if signs {
            value["sig"] = json!("ab".repeat(64));
        }
        Stored::raw(value.to_string())
    };
    events.into_iter().map(forge).collect()
}
