//! Carries a walk ([`Walk`]) between relay and database, in the filter class of the pass.

use super::windows::Window;
use super::{PAGE_EVENTS, PAGE_STRAY, Pass, REQUESTS, SyncEnd};
use crate::jobs::JobError;
use crate::models::{GapReason, Grade, Measured, Support};
use crate::nips::{Filter, Limits, Next, Walk, WalkSpec};
use crate::relay::{Page, RelaySocket};

/// The filter class without restriction.
pub(super) const ALL: &str = "all";
/// First part of the name of a class restricted to kinds, which follow.
const BY_KINDS: &str = "kinds:";
/// Kinds of a restricted class: its name, which lists them, is part of every interval's key.
const KINDS_MAX: i32 = 60;
/// Asked for whether or not the archive knows them: profiles, notes, follows, direct messages, deletions, reposts,
/// reactions, gift wraps, reports, zaps, lists, articles.
const USUAL: [u16; 14] = [0, 1, 3, 4, 5, 6, 7, 1_059, 1_984, 9_735, 10_000, 10_002, 30_000, 30_023];

/// What a pass asks for, and what its coverage speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) name: String,
    /// Empty: all.
    pub(super) kinds: Vec<u16>,
}

impl Class {
    /// Whether this relay answers only requests that name kinds.
    pub(super) fn is_restricted(measured: &Measured) -> bool {
        measured.without_kinds.seen == Support::Refused
    }

    /// No restriction.
    pub(super) fn all() -> Self {
        Self { name: ALL.to_owned(), kinds: Vec::new() }
    }

    fn of_kinds(mut kinds: Vec<u16>) -> Self {
        kinds.sort_unstable();
        kinds.dedup();
        let words: Vec<String> = kinds.iter().map(u16::to_string).collect();
        Self { name: format!("{BY_KINDS}{}", words.join(",")), kinds }
    }

    fn parse(name: &str) -> Option<Self> {
        let kinds: Result<Vec<u16>, _> = name.strip_prefix(BY_KINDS)?.split(',').map(str::parse).collect();
        Some(Self { name: name.to_owned(), kinds: kinds.ok()? })
    }

    /// The class of a relay that wants kinds named: the one it was begun with, or the kinds we know today. What it
    /// holds of other kinds is of no class, and never counts as proved.
    pub(super) async fn restricted(db: &crate::db::Db, relay_id: i32, now: i64) -> Result<Self, JobError> {
        let begun = db.coverage_classes(relay_id).await?;
        if let Some(class) = begun.iter().find_map(|name| Self::parse(name)) {
            return Ok(class);
        }
        let known = db.dense_facts(now, KINDS_MAX - i32::try_from(USUAL.len()).unwrap_or(0), 0).await?;
        Ok(Self::of_kinds(known.kinds.into_iter().chain(USUAL).collect()))
    }
}

impl Pass<'_> {
    /// Walks one window; returns how that ended and, if the relay ended it, with which gap.
    pub(super) async fn walk(
        &mut self,
        socket: &mut RelaySocket,
        window: Window,
    ) -> Result<(SyncEnd, Option<(Grade, GapReason)>), JobError> {
        let mut walk = Walk::new(WalkSpec {
            floor: window.floor,
            ceiling: window.ceiling,
            open_top: window.open_top,
            limit: self.page_limit,
            page_shown: self.page_shown,
            max_requests: REQUESTS,
        });
        let mut gap = None;
        let mut stopped = false;
        while let Next::Request(filter) = walk.next() {
            if self.reading_is_over() {
                stopped = true;
                break;
            }
            if !socket.is_usable() && !self.reconnect(socket).await? {
                gap = Some((Grade::Unknown, GapReason::Disconnected));
                break;
            }
            let page = self.ask(socket, filter).await;
            let claims = walk.on_page(&page.facts, &page.end);
            // A page that was too much is asked for in less time, and stops nothing.
            let ended = !page.end.is_eose() && (walk.is_stopped() || !page.end.is_too_much());
            gap = ended.then(|| (page.end.grade(), page.end.gap()));
            let changed = self.overlay(&claims);
            self.store_page(page, changed).await?;
        }
        self.until_exclusive = walk.reads_exclusive().unwrap_or(self.until_exclusive);
        let rest = walk.finish(gap.map_or(GapReason::Stopped, |(_, reason)| reason));
        self.overlay(&rest);
        let end = match gap {
            _ if stopped => SyncEnd::More,
            None => SyncEnd::UpToDate,
            Some((Grade::Refused, _)) => SyncEnd::Refused,
            Some(_) => SyncEnd::Interrupted,
        };
        Ok((end, if stopped { None } else { gap }))
    }

    /// One request, with what the class of the pass restricts.
    pub(super) async fn ask(&mut self, socket: &mut RelaySocket, mut filter: Filter) -> Page {
        if filter.kinds.is_empty() {
            filter.kinds.clone_from(&self.class.kinds);
        }
        self.tally.requests += 1;
        let page = self.fetch(socket, filter).await;
        self.largest = self.largest.max(page.facts.seen.len());
        page
    }

    /// What one page may cost.
    pub(super) fn limits(&self) -> Limits {
        let config = &self.ctx.config;
        Limits {
            idle_ms: u64::try_from(config.page_idle.as_millis()).unwrap_or(u64::MAX),
            total_ms: u64::try_from(config.page_total.as_millis()).unwrap_or(u64::MAX),
            max_events: PAGE_EVENTS,
            max_bytes: self.room.bytes(),
            max_stray_frames: PAGE_STRAY,
        }
    }

    /// A new connection in place of a spent one, where the fleet has a place on that machine.
    pub(super) async fn reconnect(&self, socket: &mut RelaySocket) -> Result<bool, JobError> {
        let Some(target) = &self.target else { return Ok(false) };
        if let Some(address) = target.address()
            && self.ctx.place(self.attempt, target.url().host(), address).await?.is_some()
        {
            return Ok(false);
        }
        Ok(match RelaySocket::open(&self.ctx.dialer, target).await {
            Ok(fresh) => {
                *socket = fresh;
                socket.identify(self.ctx.config.identity());
                true
            }
            Err(_) => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_back_from_its_name() {
        let class = Class::of_kinds(vec![7, 1, 30_023, 1]);
        assert_eq!(class.name, "kinds:1,7,30023");
        assert_eq!(Class::parse(&class.name), Some(class));
        assert_eq!(Class::parse("all"), None);
        assert_eq!(Class::parse("kinds:1,x"), None);
    }
}
