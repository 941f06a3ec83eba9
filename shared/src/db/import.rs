//! Writing what another archive, or a dump of a relay, holds.

use std::collections::BTreeMap;

use super::archive::Columns;
use super::rows::small_count;
use super::{Db, DbError, EventRow};
use crate::models::{EventId, RelayUrl, event_key};

/// An observation that somebody else made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedObservation {
    /// Of which event.
    pub id: EventId,
    /// The event's own time, Unix seconds.
    pub created_at: i64,
    /// Where it was seen.
    pub relay: RelayUrl,
    /// When, Unix seconds; `None`: as it is stored.
    pub seen_at: Option<i64>,
    /// Whether the relay only claimed it.
    pub claimed: bool,
}

/// What [`Db::event_import`] added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Relays that were new.
    pub relays: u64,
    /// Events that were new.
    pub events: u64,
    /// Observations that were new.
    pub observations: u64,
}

impl Db {
    /// Stores new, verified events and the observations of new and known ones, in one transaction. Every new event must
    /// have an observation. `light`: whether the archive is a lightweight one.
    pub async fn event_import(
        &self,
        new: &[EventRow],
        observed: &[ImportedObservation],
        light: bool,
        now: i64,
    ) -> Result<Imported, DbError> {
        let events = Columns::of(new.iter(), light);
        let mut positions: BTreeMap<&RelayUrl, i32> = BTreeMap::new();
        for observation in observed {
            let next = i32::try_from(positions.len()).unwrap_or(i32::MAX).saturating_add(1);
            positions.entry(&observation.relay).or_insert(next);
        }
        let mut relays: Vec<(&RelayUrl, i32)> = positions.iter().map(|(url, at)| (*url, *at)).collect();
        relays.sort_unstable_by_key(|(_, at)| *at);
        let row = self
            .one(
                sqlx::query(
                    "SELECT new_relays, new_events, new_observations FROM event_import($1, $2, $3, $4, $5, $6, $7, $8, $9, \
                     $10, $11, $12, $13, $14, $15, $16, $17, $18)",
                )
                .bind(events.ids)
                .bind(events.keys)
                .bind(events.created_ats)
                .bind(events.pubkeys)
                .bind(events.kinds)
                .bind(events.tags)
                .bind(events.contents)
                .bind(events.sigs)
                .bind(events.d_tags)
                .bind(events.tag_hashes)
                .bind(relays.iter().map(|(url, _)| url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(relays.iter().map(|(url, _)| url.network().as_str().to_owned()).collect::<Vec<_>>())
                .bind(vec![now; relays.len()])
                .bind(observed.iter().map(|o| o.id.as_bytes().as_slice()).collect::<Vec<_>>())
                .bind(observed.iter().map(|o| event_key(o.created_at, &o.id)).collect::<Vec<_>>())
                .bind(observed.iter().map(|o| positions[&o.relay]).collect::<Vec<_>>())
                .bind(observed.iter().map(|o| o.seen_at).collect::<Vec<_>>())
                .bind(observed.iter().map(|o| i16::from(o.claimed)).collect::<Vec<_>>()),
            )
            .await?;
        Ok(Imported {
            relays: small_count(&row, "new_relays")?,
            events: small_count(&row, "new_events")?,
            observations: small_count(&row, "new_observations")?,
        })
    }
}
