//! One NIP-01 filter, as we send it and as we hold a relay to it.
//!
//! Knows nothing of subscriptions. Invariant: an event that [`Filter::matches`] refuses was not asked
//! for, whatever the relay says.

use serde_json::{Map, Value};

use crate::models::{EnvelopeFacts, EventId};

/// What to ask a relay for. An empty list asks for everything, as its absence does on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these events.
    pub ids: Vec<EventId>,
    /// Only events of these x-only public keys.
    pub authors: Vec<[u8; 32]>,
    /// Only events that mention one of these public keys (`#p`): envelopes do not show it, so [`Filter::matches`] does
    /// not look.
    pub mentioned: Vec<[u8; 32]>,
    /// Only events of these kinds.
    pub kinds: Vec<u16>,
    /// Not older than this second (Unix, inclusive).
    pub since: Option<i64>,
    /// Not newer than this second (Unix, inclusive).
    pub until: Option<i64>,
    /// At most this many, the newest.
    pub limit: Option<u32>,
    /// Words to search for (NIP-50): how a relay reads them is its own affair, so [`Filter::matches`] does not.
    pub search: Option<String>,
}

impl Filter {
    /// The filter as NIP-01 writes it.
    pub fn to_json(&self) -> String {
        let mut object = Map::new();
        let mut list = |key: &str, items: Vec<Value>| {
            if !items.is_empty() {
                object.insert(key.to_owned(), Value::Array(items));
            }
        };
        list("ids", self.ids.iter().map(|id| Value::from(id.to_string())).collect());
        list("authors", self.authors.iter().map(|key| Value::from(hex::encode(key))).collect());
        list("#p", self.mentioned.iter().map(|key| Value::from(hex::encode(key))).collect());
        list("kinds", self.kinds.iter().map(|kind| Value::from(*kind)).collect());
        let numbers = [("since", self.since), ("until", self.until), ("limit", self.limit.map(i64::from))];
        for (key, number) in numbers {
            if let Some(number) = number {
                object.insert(key.to_owned(), Value::from(number));
            }
        }
        if let Some(search) = &self.search {
            object.insert("search".to_owned(), Value::from(search.as_str()));
        }
        Value::Object(object).to_string()
    }

    /// Whether an event is what was asked for; `limit` does not speak of single events.
    pub fn matches(&self, event: &EnvelopeFacts) -> bool {
        (self.ids.is_empty() || self.ids.contains(&event.id))
            && (self.authors.is_empty() || self.authors.contains(&event.pubkey))
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.since.is_none_or(|since| event.created_at >= since)
            && self.until.is_none_or(|until| event.created_at <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> EnvelopeFacts {
        EnvelopeFacts { id: EventId([1; 32]), created_at: 100, kind: 1, pubkey: [2; 32] }
    }

    #[test]
    fn only_what_is_set_is_written() {
        assert_eq!(Filter::default().to_json(), "{}");
        let filter = Filter {
            ids: vec![EventId([0xab; 32])],
            authors: vec![[0; 32]],
            mentioned: vec![[0xcd; 32]],
            kinds: vec![1, 30_023],
            since: Some(0),
            until: Some(4_294_967_295),
            limit: Some(500),
            search: None,
        };
        let value: Value = serde_json::from_str(&filter.to_json()).unwrap();
        assert_eq!(value["ids"][0], "ab".repeat(32));
        assert_eq!(value["authors"][0], "00".repeat(32));
        assert_eq!(value["#p"], serde_json::json!(["cd".repeat(32)]));
        assert_eq!(value["kinds"], serde_json::json!([1, 30_023]));
        assert_eq!((&value["since"], &value["limit"]), (&Value::from(0), &Value::from(500)));
        assert_eq!(value["until"], 4_294_967_295_i64);
    }

    #[test]
    fn both_ends_of_the_window_are_inside() {
        let filter = Filter { since: Some(100), until: Some(100), ..Filter::default() };
        assert!(filter.matches(&event()));
        assert!(!Filter { since: Some(101), ..Filter::default() }.matches(&event()));
        assert!(!Filter { until: Some(99), ..Filter::default() }.matches(&event()));
    }

    #[test]
    fn each_list_is_an_or_and_the_lists_an_and() {
        let asked = Filter { kinds: vec![0, 1], authors: vec![[9; 32], [2; 32]], ..Filter::default() };
        assert!(asked.matches(&event()));
        assert!(!Filter { kinds: vec![0], ..asked.clone() }.matches(&event()));
        assert!(!Filter { authors: vec![[9; 32]], ..asked.clone() }.matches(&event()));
        assert!(!Filter { ids: vec![EventId([3; 32])], ..asked }.matches(&event()));
    }
}
