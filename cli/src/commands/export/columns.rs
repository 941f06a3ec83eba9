//! Events and observations as Parquet, one row group in memory at a time.

use std::sync::Arc;

use parquet::basic::{Compression, GzipLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::Result;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use shared::models::Event;

use super::part::{Hashed, Sighting};

/// As NIP-01 has them; `tags` is JSON text, `id`, `pubkey` and `sig` lower-case hex.
const EVENTS: &str = "message event {
  required binary id (STRING);
  required binary pubkey (STRING);
  required int64 created_at;
  required int32 kind;
  required binary tags (STRING);
  required binary content (STRING);
  required binary sig (STRING);
}";
const OBSERVATIONS: &str = "message observation {
  required binary event_id (STRING);
  required binary relay_url (STRING);
  required int64 seen_at;
  required binary evidence (STRING);
}";
/// A row group ends at so many rows, or bytes of text: what is held in memory.
const GROUP_ROWS: usize = 50_000;
const GROUP_BYTES: usize = 16 * 1024 * 1024;

fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by(format!("bigbrotr {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::GZIP(GzipLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
}

fn column<T: DataType>(group: &mut SerializedRowGroupWriter<'_, Hashed>, values: &[T::T]) -> Result<()> {
    if let Some(mut column) = group.next_column()? {
        column.typed::<T>().write_batch(values, None, None)?;
        column.close()?;
    }
    Ok(())
}

fn text(value: impl Into<Vec<u8>>) -> ByteArray {
    ByteArray::from(value.into())
}

/// The file of events.
pub(super) struct EventTable {
    writer: SerializedFileWriter<Hashed>,
    texts: [Vec<ByteArray>; 5],
    created_ats: Vec<i64>,
    kinds: Vec<i32>,
    bytes: usize,
}

impl EventTable {
    pub(super) fn new(file: Hashed) -> Result<Self> {
        let mut properties = properties();
        // No two are alike: a dictionary would be built for nothing.
        for unique in ["id", "sig", "content"] {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(unique), false);
        }
        for long in ["tags", "content", "sig"] {
            properties =
                properties.set_column_statistics_enabled(ColumnPath::from(long), EnabledStatistics::None);
        }
        let schema = Arc::new(parse_message_type(EVENTS)?);
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build()))?;
        Ok(Self { writer, texts: Default::default(), created_ats: vec![], kinds: vec![], bytes: 0 })
    }

    /// Takes a row; returns the bytes of its text.
    pub(super) fn add(&mut self, event: &Event, id: &str) -> Result<usize> {
        let (tags, content) = (event.tags_json(), event.content());
        let bytes = tags.len() + content.len();
        let row = [
            text(id),
            text(hex::encode(event.pubkey())),
            text(tags),
            text(content),
            text(hex::encode(event.sig())),
        ];
        for (column, value) in self.texts.iter_mut().zip(row) {
            column.push(value);
        }
        self.created_ats.push(event.created_at());
        self.kinds.push(i32::from(event.kind()));
        self.bytes += bytes;
        if self.kinds.len() >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            self.group()?;
        }
        Ok(bytes)
    }

    fn group(&mut self) -> Result<()> {
        let mut group = self.writer.next_row_group()?;
        let [ids, pubkeys, tags, contents, sigs] = &self.texts;
        column::<ByteArrayType>(&mut group, ids)?;
        column::<ByteArrayType>(&mut group, pubkeys)?;
        column::<Int64Type>(&mut group, &self.created_ats)?;
        column::<Int32Type>(&mut group, &self.kinds)?;
        column::<ByteArrayType>(&mut group, tags)?;
        column::<ByteArrayType>(&mut group, contents)?;
        column::<ByteArrayType>(&mut group, sigs)?;
        group.close()?;
        self.texts.iter_mut().for_each(Vec::clear);
        self.created_ats.clear();
        self.kinds.clear();
        self.bytes = 0;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Hashed> {
        if !self.kinds.is_empty() {
            self.group()?;
        }
        self.writer.into_inner()
    }
}

/// The file of observations.
pub(super) struct SightingTable {
    writer: SerializedFileWriter<Hashed>,
    ids: Vec<ByteArray>,
    relays: Vec<ByteArray>,
    seen_ats: Vec<i64>,
    evidence: Vec<ByteArray>,
}

impl SightingTable {
    pub(super) fn new(file: Hashed) -> Result<Self> {
        let schema = Arc::new(parse_message_type(OBSERVATIONS)?);
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties().build()))?;
        Ok(Self { writer, ids: vec![], relays: vec![], seen_ats: vec![], evidence: vec![] })
    }

    pub(super) fn add(&mut self, id: &str, sighting: &Sighting<'_>) -> Result<()> {
        self.ids.push(text(id));
        self.relays.push(text(sighting.relay));
        self.seen_ats.push(sighting.seen_at);
        self.evidence.push(text(sighting.evidence()));
        if self.ids.len() >= GROUP_ROWS { self.group() } else { Ok(()) }
    }

    fn group(&mut self) -> Result<()> {
        let mut group = self.writer.next_row_group()?;
        column::<ByteArrayType>(&mut group, &self.ids)?;
        column::<ByteArrayType>(&mut group, &self.relays)?;
        column::<Int64Type>(&mut group, &self.seen_ats)?;
        column::<ByteArrayType>(&mut group, &self.evidence)?;
        group.close()?;
        self.ids.clear();
        self.relays.clear();
        self.seen_ats.clear();
        self.evidence.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Hashed> {
        if !self.ids.is_empty() {
            self.group()?;
        }
        self.writer.into_inner()
    }
}
