//! An archive that grows month by month, and what is measured at its stops.

use std::collections::HashMap;

use crate::figure::{Goal, Report};
use crate::queue::Cluster;

use super::ours::{Fed, Ours, bytes_per_row, count};
use super::peer::{CASCADE, Peer, copy};
use super::refresh::{Refreshed, change};
use super::workload::{Plan, Slice};
use super::{Group, Options, ask, figure, key, layout, lifecycle, refresh, relays};

const PEER: &str = "bigbrotr 6.6.9 on the same server and data";
const NOTHING: &str = "nothing";

/// The archive at hand, the peer's beside it, and what the first stop showed.
struct Growth<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    ours: Ours,
    peer: Option<Peer>,
    /// Processor seconds per 1,000 new observations of each month, vacuum included.
    costs: Vec<f64>,
    asked: HashMap<&'static str, f64>,
    refreshed: Option<Refreshed>,
}

pub(super) fn month(options: &Options, step: u32) -> anyhow::Result<Slice> {
    let month = options.month(step);
    Slice::make(Plan {
        seed: u64::from(step),
        month,
        months: 1,
        part: options.part(step),
        events: options.events(),
        single: false,
    })
}

/// Grows, stops, measures.
pub(super) async fn run(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let peer = if options.no_peer { None } else { Some(Peer::open(cluster).await?) };
    let mut growth = Growth {
        cluster,
        options,
        ours: Ours::open(cluster).await?,
        peer,
        costs: Vec::new(),
        asked: HashMap::new(),
        refreshed: None,
    };
    growth.begin(report).await?;
    for at in 1..options.last() {
        let slice = month(options, at)?;
        let fed = growth.ours.feed(&slice).await?;
        let vacuum = growth.ours.settle(options.month(at)).await;
        growth.costs.push((fed.cpu_s + vacuum) * 1_000.0 / count(fed.observations));
        if at < options.middle()
            && let Some(peer) = &mut growth.peer
        {
            peer.feed(&slice).await?;
        }
        if at + 1 == options.middle() {
            if let Some(peer) = &growth.peer {
                peer.settle().await;
            }
            growth.middle(&slice, options.month(at), report).await?;
            // It has said what it has to say, and its pages would stand in the way.
            growth.peer = None;
        }
    }
    let slice = month(options, options.last() - 1)?;
    let at = options.month(options.last() - 1);
    growth.last(&slice, at, report).await?;
    if options.wants(Group::Key) {
        key::run(cluster, &growth.ours, options, report).await?;
    }
    if options.wants(Group::Layout) {
        layout::run(cluster, &growth.ours, options, at, report).await?;
    }
    if options.wants(Group::Lifecycle) {
        lifecycle::run(cluster, &growth.ours, options, at, report).await?;
    }
    Ok(())
}

impl Growth<'_> {
    /// The first month: ours, the peer's cascade, and `COPY`; then the same once more.
    async fn begin(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let slice = month(self.options, 0)?;
        let fed = self.ours.feed(&slice).await?;
        let vacuum = self.ours.settle(0).await;
        self.costs.push((fed.cpu_s + vacuum) * 1_000.0 / count(fed.observations));
        let dup = self.ours.feed(&slice).await?;
        let (mut theirs, mut theirs_dup, mut their_vacuum) = (Fed::default(), Fed::default(), f64::NAN);
        if let Some(peer) = &mut self.peer {
            theirs = peer.feed(&slice).await?;
            their_vacuum = peer.settle().await;
            theirs_dup = peer.feed(&slice).await?;
            peer.unchecked().await?;
        }
        let floor = Ours::open(self.cluster).await?;
        let bare = copy(&floor, self.cluster, &slice).await?;
        let bare_vacuum = floor.settle(0).await;
        anyhow::ensure!(
            bare.observations == fed.observations && bare.events == fed.events,
            "not everything was stored"
        );
        let per_1k = |fed: &Fed, vacuum: f64| (fed.cpu_s + vacuum) * 1_000.0 / count(fed.observations);
        let copies = count(fed.observations) / count(fed.events);
        let json: usize = slice.events.iter().map(|row| row.event.to_json().len()).sum();
        for figure in [
            figure("pg_cpu_s_per_1k", fed.per_1k(), theirs.per_1k(), CASCADE, "s", Goal::AtMost(0.020)),
            figure(
                "pg_cpu_s_per_1k_with_vacuum",
                per_1k(&fed, vacuum),
                per_1k(&theirs, their_vacuum),
                CASCADE,
                "s",
                Goal::Stated,
            ),
            figure(
                "pg_cpu_s_per_1k_over_copy",
                per_1k(&fed, vacuum),
                per_1k(&bare, bare_vacuum),
                "COPY of the same rows into the same tables, nothing asked",
                "s",
                Goal::Stated,
            ),
            figure(
                "dup_pg_cpu_s_per_1k",
                dup.delivered_1k(),
                theirs_dup.delivered_1k(),
                CASCADE,
                "s",
                Goal::AtMost(0.006),
            ),
            figure(
                "json_bytes_per_event",
                count(json as u64) / count(fed.events),
                900.0,
                "planned",
                "bytes",
                Goal::Stated,
            ),
            figure("copies_per_event", copies, 4.68, "counted in the network", "copies", Goal::Stated),
        ] {
            report.add(&figure);
        }
        Ok(())
    }

    /// Half a dozen months: 3 million observations.
    async fn middle(&mut self, slice: &Slice, at: u32, report: &mut Report) -> anyhow::Result<()> {
        self.grown("growth_ratio_3m", slice, at, report).await?;
        let none = (f64::NAN, f64::NAN);
        let theirs = match &self.peer {
            Some(peer) => {
                (bytes_per_row(&peer.test, "event_relay").await?, bytes_per_row(&peer.test, "event").await?)
            }
            None => none,
        };
        let mine = (
            bytes_per_row(&self.ours.test, "event_relay").await?,
            bytes_per_row(&self.ours.test, "event").await?,
        );
        report.add(&figure("bytes_per_observation", mine.0, theirs.0, PEER, "bytes", Goal::AtMost(110.0)));
        report.add(&figure("bytes_per_event", mine.1, theirs.1, PEER, "bytes", Goal::RatioAtMost(0.75)));
        self.parts(report).await?;
        if self.options.wants(Group::Ask) {
            self.ask(slice, at, report).await?;
        }
        if self.options.wants(Group::Refresh) {
            let change = change(at, self.options.events() * self.options.middle() / 100, 7_001)?;
            relays::fill(&self.ours.test, relays::relays(self.options.quick)).await;
            let mine = refresh::ours(self.cluster, &self.ours, &change, 0).await?;
            let none =
                Refreshed { first: f64::NAN, changed: f64::NAN, looked: f64::NAN, unchanged: f64::NAN };
            let theirs = match &mut self.peer {
                Some(peer) => refresh::peer(self.cluster, peer, &change).await?,
                None => none,
            };
            for figure in [
                figure("first_refresh_cpu_s", mine.first, theirs.first, PEER, "s", Goal::Stated),
                figure("changed_1pct_cpu_s", mine.changed, theirs.changed, PEER, "s", Goal::AtMost(1.0)),
                figure("relays_changed_1pct_cpu_s", mine.looked, f64::NAN, NOTHING, "s", Goal::AtMost(0.1)),
                figure("unchanged_cpu_s", mine.unchanged, theirs.unchanged, PEER, "s", Goal::AtMost(0.1)),
            ] {
                report.add(&figure);
            }
            self.refreshed = Some(mine);
        }
        Ok(())
    }

    async fn last(&mut self, slice: &Slice, at: u32, report: &mut Report) -> anyhow::Result<()> {
        self.grown("growth_ratio_10m", slice, at, report).await?;
        let ours = bytes_per_row(&self.ours.test, "event_relay").await?;
        report.add(&figure(
            "bytes_per_observation_10m",
            ours,
            f64::NAN,
            NOTHING,
            "bytes",
            Goal::AtMost(110.0),
        ));
        let (events, months) = (self.options.events() / 5, at + 1);
        let scattered =
            Slice::make(Plan { seed: 9_001, month: 0, months, part: (0, 1), events, single: false })?;
        let fed = self.ours.feed(&scattered).await?;
        let month = self.costs.last().copied().unwrap_or(f64::NAN);
        let against = "a relay's month in order, same archive";
        report.add(&figure("scattered_pg_cpu_s_per_1k", fed.per_1k(), month, against, "s", Goal::Stated));
        if self.options.wants(Group::Ask) {
            let asked: Vec<_> = scattered.named().take(1_000).collect();
            let cost = ask::known(self.cluster.postmaster, &self.ours, &asked).await?;
            report.add(&figure(
                "known_scattered_1000_ms",
                cost.wall_ms,
                f64::NAN,
                NOTHING,
                "ms",
                Goal::Stated,
            ));
            self.ask(slice, at, report).await?;
        }
        if self.options.wants(Group::Refresh) {
            let change = change(at, self.options.events() * self.options.middle() / 100, 7_002)?;
            let now = refresh::ours(self.cluster, &self.ours, &change, refresh::LOOKS + 1).await?;
            let before = self.refreshed.map_or(f64::NAN, |before| before.changed);
            let against = "the same new observations at 3 M";
            report.add(&figure(
                "changed_10m_cpu_s",
                now.changed,
                before,
                against,
                "s",
                Goal::RatioAtMost(1.3),
            ));
            report.add(&figure(
                "relays_changed_10m_cpu_s",
                now.looked,
                self.refreshed.map_or(f64::NAN, |before| before.looked),
                against,
                "s",
                Goal::AtMost(0.1),
            ));
            report.add(&figure(
                "unchanged_10m_cpu_s",
                now.unchanged,
                f64::NAN,
                NOTHING,
                "s",
                Goal::AtMost(0.1),
            ));
        }
        Ok(())
    }

    /// What was just stored, against the same into an archive that has nothing else, at once: the machine's moods are on
    /// both sides.
    async fn grown(
        &self,
        name: &'static str,
        slice: &Slice,
        at: u32,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let now = self.costs.last().copied().unwrap_or(f64::NAN);
        let fresh = Ours::open(self.cluster).await?;
        let fed = fresh.feed(slice).await?;
        let empty = (fed.cpu_s + fresh.settle(at).await) * 1_000.0 / count(fed.observations);
        let against = "the same into an empty archive, right after";
        report.add(&figure(name, now, empty, against, "s", Goal::RatioAtMost(1.15)));
        Ok(())
    }

    /// Where an observation's and an event's bytes are.
    async fn parts(&self, report: &mut Report) -> anyhow::Result<()> {
        for (table, index) in [
            ("event_relay", ""),
            ("event_relay", "relay_id_event_key_idx|_pkey"),
            ("event_relay", "event_key_idx"),
            ("event", ""),
            ("event", "event_key_id_idx|_pkey"),
            ("event", "substring_idx"),
            ("event", "tag_hashes_idx"),
        ] {
            let bytes = if index.is_empty() {
                format!("SELECT sum(pg_table_size(relid)) FROM pg_partition_tree('{table}') WHERE isleaf")
            } else {
                format!(
                    "SELECT coalesce(sum(pg_relation_size(i.indexrelid)), 0) FROM pg_partition_tree('{table}') t JOIN pg_index i ON i.indrelid = t.relid
                     JOIN pg_class c ON c.oid = i.indexrelid
                     WHERE t.isleaf AND c.relname ~ '({index})[0-9]*$'"
                )
            };
            let bytes = self.ours.number(&bytes).await?
                / self.ours.number(&format!("SELECT count(*) FROM {table}")).await?;
            let part = if index.is_empty() { "heap" } else { index };
            report.add(&figure(
                format!("bytes_{table}: {part}"),
                bytes,
                f64::NAN,
                NOTHING,
                "bytes",
                Goal::Stated,
            ));
        }
        Ok(())
    }

    async fn ask(&mut self, slice: &Slice, at: u32, report: &mut Report) -> anyhow::Result<()> {
        let first = self.asked.is_empty();
        let stop = if first { "3m" } else { "10m" };
        let pg = self.cluster.postmaster;
        let strangers = change(at, 1_000, 8_001)?;
        let asked = ask::thousand(slice, &strangers);
        let mine = ask::known(pg, &self.ours, &asked).await?;
        let theirs = match &self.peer {
            Some(peer) => ask::known_peer(pg, peer, &asked).await?,
            None => ask::Cost { wall_ms: f64::NAN, cpu_ms: f64::NAN },
        };
        if first {
            report.add(&figure(
                "known_ids_1000_ms",
                mine.wall_ms,
                theirs.wall_ms,
                PEER,
                "ms",
                Goal::AtMost(10.0),
            ));
            report.add(&figure(
                "known_ids_1000_cpu_ms",
                mine.cpu_ms,
                theirs.cpu_ms,
                PEER,
                "ms",
                Goal::Stated,
            ));
        } else {
            let before = self.asked.get("known").copied().unwrap_or(f64::NAN);
            report.add(&figure(
                "known_ids_1000_ms_10m",
                mine.wall_ms,
                before,
                "ours at 3 M",
                "ms",
                Goal::AtMost(10.0),
            ));
        }
        self.asked.insert("known", mine.wall_ms);
        for question in ask::questions(&self.ours, slice, at)? {
            let mine = ask::sql(pg, &self.ours.test, &question.ours).await?;
            let (reference, against) = match &self.peer {
                Some(peer) => (question.peer(pg, peer).await?.cpu_ms, PEER),
                None => {
                    (self.asked.get(question.name).copied().unwrap_or(f64::NAN), "ours at the stop before")
                }
            };
            let name = format!("{}_cpu_ms_{stop}", question.name);
            report.add(&figure(name, mine.cpu_ms, reference, against, "ms", Goal::Stated));
            self.asked.insert(question.name, mine.cpu_ms);
        }
        let listed = count(slice.relays[9].len() as u64);
        report.add(&figure(
            format!("list_month_rows_{stop}"),
            listed,
            f64::NAN,
            NOTHING,
            "rows",
            Goal::Stated,
        ));
        Ok(())
    }
}
