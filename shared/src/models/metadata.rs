//! What is known about a relay, as content-addressed documents.
//!
//! The address is the SHA-256 of the canonical form; the type is part of the database's key and not
//! of the hash. Invariant: the id is the hash of the text beside it.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::canonical::{DocumentError, canonical_object};
use super::closed::{UnknownWord, closed_set};

closed_set! {
    /// What a document describes.
    MetadataType, "metadata type" {
        /// The relay's own description (NIP-11).
        Nip11Info = "nip11_info",
        /// Round-trip times of opening, reading and writing (NIP-66).
        Nip66Rtt = "nip66_rtt",
        /// The certificate.
        Nip66Ssl = "nip66_ssl",
        /// Where the address is.
        Nip66Geo = "nip66_geo",
        /// Whose network the address is in.
        Nip66Net = "nip66_net",
        /// What DNS says.
        Nip66Dns = "nip66_dns",
        /// What the HTTP headers say.
        Nip66Http = "nip66_http",
    }
}

/// Why a document is not taken, from a relay or from the database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The text is no document.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The database holds a type that we do not know.
    #[error(transparent)]
    Kind(#[from] UnknownWord),
    /// The database holds an id that is not the hash of the document beside it.
    #[error("the stored id is not the hash of the stored document")]
    HashMismatch,
}

impl MetadataError {
    /// The error's word, for counters: a closed set.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Document(error) => error.as_str(),
            Self::Kind(_) => "unknown_type",
            Self::HashMismatch => "hash_mismatch",
        }
    }
}

/// A document in canonical form, with its content address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Metadata {
    kind: MetadataType,
    id: [u8; 32],
    /// Shared by all copies: a worker holds as many documents as it has slots, and its calls take copies.
    canonical: Arc<str>,
}

impl Metadata {
    /// Brings the text of a JSON object into canonical form: nothing empty, keys by code point,
    /// integers exact, floats as Python writes them. Numbers too large for a float and what lies
    /// deeper than 50 levels are dropped.
    pub fn new(kind: MetadataType, json_text: &str) -> Result<Self, MetadataError> {
        let canonical = canonical_object(json_text)?;
        let id = Sha256::digest(&canonical).into();
        Ok(Self { kind, id, canonical: canonical.into() })
    }

    /// The same from a value; its numbers are what [`serde_json::Value`] made of them.
    pub fn from_value(kind: MetadataType, value: &serde_json::Value) -> Result<Self, MetadataError> {
        Self::new(kind, &value.to_string())
    }

    /// Reads a row back, in whatever spelling the database gives the document.
    ///
    /// # Errors
    /// Those of [`Metadata::new`], `Kind` for an unknown type, `HashMismatch` when `id` is not the
    /// hash of the document.
    pub fn from_db(kind: &str, id: &[u8], data: &str) -> Result<Self, MetadataError> {
        let metadata = Self::new(kind.parse()?, data)?;
        if metadata.id.as_slice() != id {
            return Err(MetadataError::HashMismatch);
        }
        Ok(metadata)
    }

    /// The canonical text, UTF-8 without NUL, a JSON object.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// SHA-256 of the canonical text.
    pub const fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// What the document describes.
    pub const fn kind(&self) -> MetadataType {
        self.kind
    }

    /// Whether the document says nothing.
    pub fn is_empty(&self) -> bool {
        &*self.canonical == "{}"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn info(text: &str) -> Metadata {
        Metadata::new(MetadataType::Nip11Info, text).unwrap()
    }

    /// The reference's vectors: text, canonical form, first bytes of the hash.
    #[test]
    fn the_content_addresses_are_those_of_the_original() {
        for (text, canonical, hash) in [
            ("{}", "{}", "44136fa355b3678a"),
            (r#"{"a":1e999,"b":-1e999}"#, "{}", "44136fa355b3678a"),
            (r#"{"a":{"b":{"c":null}},"l":[[],{},null,[[]]]}"#, "{}", "44136fa355b3678a"),
            (r#"{"b":2,"a":1}"#, r#"{"a":1,"b":2}"#, "43258cff783fe703"),
            (r#"{"a":false,"b":0,"c":""}"#, r#"{"a":false,"b":0,"c":""}"#, "483ccf4c545cab49"),
            (r#"{"a":1}"#, r#"{"a":1}"#, "015abd7f5cc57a2d"),
            (r#"{"a":1180591620717411303424}"#, r#"{"a":1180591620717411303424}"#, "153c467c03c53496"),
        ] {
            let metadata = info(text);
            assert_eq!(metadata.canonical(), canonical);
            assert_eq!(hex::encode(&metadata.id()[..8]), hash, "{text}");
            assert_eq!(metadata.is_empty(), canonical == "{}");
        }
    }

    #[test]
    fn the_type_is_not_part_of_the_address() {
        let ssl = Metadata::new(MetadataType::Nip66Ssl, r#"{"a":1}"#).unwrap();
        assert_eq!(ssl.id(), info(r#"{"a":1}"#).id());
        assert_ne!(ssl, info(r#"{"a":1}"#));
        assert_eq!(ssl.kind().as_str(), "nip66_ssl");
    }

    #[test]
    fn a_value_becomes_what_its_text_becomes() {
        let value = json!({"b": [1, null, 1.0, 1e16], "a": u64::MAX, "c": {}});
        let metadata = Metadata::from_value(MetadataType::Nip66Rtt, &value).unwrap();
        assert_eq!(metadata.canonical(), r#"{"a":18446744073709551615,"b":[1,1.0,1e+16]}"#);
        let refused = Metadata::from_value(MetadataType::Nip66Rtt, &json!([1]));
        assert_eq!(refused, Err(MetadataError::Document(DocumentError::NotObject)));
    }

    #[test]
    fn a_row_that_does_not_hash_to_its_id_is_found() {
        let metadata = info(r#"{"name":"relay","n":1.50}"#);
        let read = |kind: &str, id: &[u8], data: &str| Metadata::from_db(kind, id, data);
        assert_eq!(
            read("nip11_info", metadata.id(), "{\"n\": 1.5, \"name\": \"relay\"}"),
            Ok(metadata.clone())
        );
        let tampered = read("nip11_info", metadata.id(), r#"{"name":"other","n":1.5}"#);
        assert_eq!(tampered, Err(MetadataError::HashMismatch));
        assert_eq!(read("nip11_info", &metadata.id()[1..], "{}"), Err(MetadataError::HashMismatch));
        assert!(matches!(read("nip11", metadata.id(), "{}"), Err(MetadataError::Kind(_))));
        assert!(matches!(read("nip11_info", metadata.id(), "{"), Err(MetadataError::Document(_))));
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back(key in "[^\0]{0,8}", text in "[^\0]{0,20}", float: f64, n: i64) {
            let value = json!({key: [text, float, n]});
            let metadata = Metadata::from_value(MetadataType::Nip11Info, &value).unwrap();
            let again = Metadata::from_db("nip11_info", metadata.id(), metadata.canonical());
            prop_assert_eq!(again, Ok(metadata));
        }
    }
}
