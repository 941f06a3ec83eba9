//! Writing what another archive, or a dump of a relay, holds.

use std::collections::{BTreeMap, HashSet};

use super::archive::Columns;
use super::rows::{get, small_count};
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

/// How many URLs of one host, domain and hoster there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UrlCaps {
    /// Of one host.
    pub per_host: u32,
    /// Of one domain, all hosts below it together.
    pub per_site: u32,
    /// Of the customers of one hoster together.
    pub per_hoster: u32,
}

/// What became of the relays that an import names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Relays that were not known before.
    pub new: u64,
    /// Left alone by an operator's word.
    pub excluded: HashSet<String>,
    /// Of a host, domain or hoster that has as many URLs as one may have.
    pub over_cap: HashSet<String>,
    /// On a port that strangers may not name.
    pub other_port: HashSet<String>,
}

impl Db {
    /// Relays of an import, each with whether it is on a port that may be named: those that are not known become so,
    /// but for those that are excluded, over `caps` or not open.
    pub async fn import_relays(
        &self,
        relays: &[(&RelayUrl, bool)],
        caps: Option<UrlCaps>,
        now: i64,
    ) -> Result<Named, DbError> {
        let urls = || relays.iter().map(|(url, _)| url);
        let cap = |of: fn(UrlCaps) -> u32| caps.map(|caps| i32::try_from(of(caps)).unwrap_or(i32::MAX));
        let row = self
            .one(
                sqlx::query(
                    "SELECT new_relays, excluded, full_up, closed FROM import_relays($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                )
                .bind(urls().map(|url| url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(urls().map(|url| url.network().as_str().to_owned()).collect::<Vec<_>>())
                .bind(relays.iter().map(|(_, open)| *open).collect::<Vec<_>>())
                .bind(urls().map(|url| url.site().map(str::to_owned)).collect::<Vec<_>>())
                .bind(urls().map(|url| url.hoster().map(str::to_owned)).collect::<Vec<_>>())
                .bind(now)
                .bind(cap(|caps| caps.per_host))
                .bind(cap(|caps| caps.per_site))
                .bind(cap(|caps| caps.per_hoster)),
            )
            .await?;
        let set = |column| Ok::<_, DbError>(get::<Vec<String>>(&row, column)?.into_iter().collect());
        Ok(Named {
            new: small_count(&row, "new_relays")?,
            excluded: set("excluded")?,
            over_cap: set("full_up")?,
            other_port: set("closed")?,
        })
    }

    /// Makes the months of these seconds that are missing; returns how many partitions.
    pub async fn month_of_import(&self, seconds: &[i64]) -> Result<u64, DbError> {
        let mut made = 0;
        loop {
            let row = self.one(sqlx::query("SELECT month_of_import($1) AS n").bind(seconds)).await?;
            match small_count(&row, "n")? {
                0 => return Ok(made),
                n => made += n,
            }
        }
    }

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
