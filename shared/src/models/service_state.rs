//! What a service keeps between two runs, under a name that readers of the original know.

use super::canonical::{DocumentError, canonical_object};
use super::closed::{UnknownWord, closed_set};

/// The longest key, in bytes: it is part of a B-tree key, and URLs are the longest of them.
pub const MAX_STATE_KEY_BYTES: usize = 2_048;

closed_set! {
    /// Whose state it is.
    ServiceName, "service name" {
        /// Reads seed lists.
        Seeder = "seeder",
        /// Finds relay addresses.
        Finder = "finder",
        /// Proves that candidates are relays.
        Validator = "validator",
        /// Checks relays.
        Monitor = "monitor",
        /// Archives events.
        Synchronizer = "synchronizer",
        /// Refreshes views.
        Refresher = "refresher",
        /// Serves readers over HTTP.
        Api = "api",
        /// Serves readers over Nostr (NIP-90).
        Dvm = "dvm",
    }
}

closed_set! {
    /// What the state is for.
    StateType, "state type" {
        /// When, and how often, something was done.
        Checkpoint = "checkpoint",
        /// How far something has come.
        Cursor = "cursor",
    }
}

/// Why a state is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceStateError {
    /// A service or state type that we do not know.
    #[error(transparent)]
    Word(#[from] UnknownWord),
    /// The value is no document.
    #[error(transparent)]
    Value(#[from] DocumentError),
    /// The key is empty, longer than [`MAX_STATE_KEY_BYTES`], or has a NUL in it.
    #[error("the state's key is empty, too long, or has a NUL character in it")]
    Key,
}

/// One entry of a service's memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceState {
    service: ServiceName,
    state_type: StateType,
    key: String,
    value: String,
}

impl ServiceState {
    /// Checks the key and brings the value, a JSON object, into canonical form.
    pub fn new(
        service: ServiceName,
        state_type: StateType,
        key: &str,
        value: &str,
    ) -> Result<Self, ServiceStateError> {
        if key.is_empty() || key.len() > MAX_STATE_KEY_BYTES || key.contains('\0') {
            return Err(ServiceStateError::Key);
        }
        Ok(Self { service, state_type, key: key.to_owned(), value: canonical_object(value)? })
    }

    /// Reads a row back.
    ///
    /// # Errors
    /// Those of [`ServiceState::new`], and `Word` for names that we do not know.
    pub fn from_db(
        service: &str,
        state_type: &str,
        key: &str,
        value: &str,
    ) -> Result<Self, ServiceStateError> {
        Self::new(service.parse()?, state_type.parse()?, key, value)
    }

    /// Whose state it is.
    pub const fn service(&self) -> ServiceName {
        self.service
    }

    /// What the state is for.
    pub const fn state_type(&self) -> StateType {
        self.state_type
    }

    /// What the state is about: a URL, a source's name.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The state itself: a JSON object in canonical form.
    pub fn value(&self) -> &str {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_whatever_the_spelling_of_its_value() {
        let state = ServiceState::new(
            ServiceName::Finder,
            StateType::Cursor,
            "wss://relay.com",
            r#"{"b":null,"a":1}"#,
        )
        .unwrap();
        assert_eq!(state.value(), r#"{"a":1}"#);
        let again = ServiceState::from_db("finder", "cursor", "wss://relay.com", "{\"a\": 1}");
        assert_eq!(again, Ok(state));
    }

    #[test]
    fn unknown_names_bad_keys_and_bad_values_are_refused() {
        let read = |service, kind, key: &str, value| ServiceState::from_db(service, kind, key, value);
        assert!(matches!(read("worker", "cursor", "k", "{}"), Err(ServiceStateError::Word(_))));
        assert!(matches!(read("api", "candidate", "k", "{}"), Err(ServiceStateError::Word(_))));
        for key in ["", "a\0b", "k".repeat(MAX_STATE_KEY_BYTES + 1).as_str()] {
            assert_eq!(read("api", "cursor", key, "{}"), Err(ServiceStateError::Key));
        }
        assert!(read("api", "cursor", &"k".repeat(MAX_STATE_KEY_BYTES), "{}").is_ok());
        let value = read("api", "cursor", "k", r#"{"a":"\u0000"}"#);
        assert_eq!(value, Err(ServiceStateError::Value(DocumentError::Nul)));
    }
}
