//! Carries a walk ([`Walk`]) between relay and database, in the filter class of the pass.

use super::class::Class;
use super::dialing::may_be_ours;
use super::missing::Served;
use super::windows::Window;
use super::{PAGE_EVENTS, PAGE_STRAY, Pass, REQUESTS, SyncEnd, ended_by};
use crate::clock;
use crate::db::ReconcileBatch;
use crate::jobs::capability::PAGE_USUAL;
use crate::jobs::{JobError, lost};
use crate::models::{EventId, GapReason, Grade, Interval};
use crate::nips::{Filter, Limits, Next, PageEnd, Walk, WalkSpec, refuses_filter};
use crate::relay::{Page, RelaySocket};

/// Seconds within which an event may come late that had not come when its page was served: what a relay takes in meanwhile is no lie.
const LATE: i64 = 3_600;
/// Events known to have been on the relay that one walk is held against.
const WITNESSES: i32 = 10;

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
            page_shown: self.page_shown(window),
            max_requests: REQUESTS,
        });
        let known = self.witnesses((window.floor, window.ceiling)).await?;
        // That the relay says nothing is no news where it has just spoken, or said nothing when it was last asked.
        let doubted = |at| self.coverage.at(at).is_some_and(|known| known.reason() == GapReason::NotServed);
        let silence_is_known = self.tally.delivered > 0 || known.iter().all(|(at, _)| doubted(*at));
        let missed = !known.is_empty();
        let echo = if !missed || self.tally.delivered > 0 { self.echo(window, missed).await? } else { None };
        walk = walk.knowing(known, silence_is_known).listening(echo).sampling(clock::random());
        walk = walk.filling(clock::unix_now() - LATE);
        let mut gap = None;
        let mut stopped = false;
        let mut served = Served::begin();
        let mut ahead: Option<Page> = None;
        while let Next::Request(filter) = walk.next() {
            self.look_at_budget().await?;
            if ahead.is_none() {
                if self.reading_is_over() {
                    if self.is_cut_short() {
                        stopped = true;
                        break;
                    }
                    if !stopped {
                        // What was proved is checked first: two or three requests.
                        stopped = true;
                        walk.wind_up();
                        continue;
                    }
                }
                if !socket.is_usable()
                    && let Some(reason) = self.reconnect(socket).await?
                {
                    gap = Some((Grade::Unknown, reason));
                    break;
                }
            }
            let by_ids = !filter.ids.is_empty();
            let page = match ahead.take() {
                Some(page) => page,
                None => self.ask(socket, filter).await,
            };
            let claims = walk.on_page(&page.facts, &page.end);
            served.see(&page.facts);
            served.settle(&claims);
            // Who does not answer for ids has said nothing of its timeline; and a page that was too much is asked for in less
            // time, and stops nothing.
            let limited = page.end.gap() == GapReason::RateLimited;
            let refuses_ids = by_ids && !limited && matches!(page.end, PageEnd::Closed { .. });
            let goes_on = page.end.asks_for_less() && !walk.is_stopped();
            let ended = !page.end.is_eose() && !refuses_ids && !goes_on;
            gap = ended.then(|| (page.end.grade(), page.end.gap()));
            // Who refused, or wants to be asked less, is asked nothing more, not even what is left to check.
            let told_off = gap.is_some_and(|gap| ended_by(gap) != SyncEnd::Interrupted);
            self.ask_for_less(walk.smallest_cut());
            let changed = self.overlay(&claims);
            let next = match walk.next() {
                Next::Request(filter) if !told_off && socket.is_usable() && !self.reading_is_over() => {
                    Some(filter)
                }
                _ => None,
            };
            ahead = self.store_and_ask(page, changed, socket, next).await?;
            self.note_gone(walk.take_gone()).await?;
            if told_off {
                break;
            }
        }
        self.smallest_cut = self.smallest_cut.into_iter().chain(walk.smallest_cut()).min();
        self.until_exclusive = walk.reads_exclusive().unwrap_or(self.until_exclusive);
        let rest = walk.finish(gap.map_or(GapReason::Stopped, |(_, reason)| reason));
        self.overlay(&rest);
        served.settle(&rest);
        if gap.is_none() && !stopped {
            gap = self.note_missing(socket, served).await?;
        }
        let end = match gap {
            Some(gap) => ended_by(gap),
            None if stopped => SyncEnd::More,
            None => SyncEnd::UpToDate,
        };
        Ok((end, gap))
    }

    /// Events of the largest page that is known not to have been cut: as served in the survey, less where this pass saw
    /// smaller ones cut, and none where an earlier pass found that the floor is a second that does not fit into a page.
    fn page_shown(&self, window: Window) -> usize {
        let floor = self.coverage.at(window.floor).map(Interval::reason);
        let known_dense = floor == Some(GapReason::DenseSecond) && !self.dense.contains(&window.floor);
        let shown = if known_dense { 0 } else { self.page_shown };
        shown.min(self.smallest_cut.unwrap_or(shown))
    }

    /// Where outside a window the relay is known to have served something: newer than the window, or else older, from the
    /// first of it to the very end, since what it keeps longest is what is new. None where the window is proved, unless events
    /// known to lie in it may be missed.
    async fn echo(&self, window: Window, missed: bool) -> Result<Option<(i64, i64)>, JobError> {
        let now = clock::unix_now();
        if !missed && self.coverage.unproved(window.floor, window.ceiling.min(now)).is_empty() {
            return Ok(None);
        }
        for (floor, ceiling) in [(window.ceiling + 1, now), (0, window.floor - 1)] {
            if floor <= ceiling
                && let Some((oldest, _)) = self.witnesses((floor, ceiling)).await?.last()
            {
                return Ok(Some((*oldest, ceiling)));
            }
        }
        Ok(None)
    }

    /// What the relay is known to have had there, in the class of the pass, newest first.
    pub(super) async fn witnesses(&self, stretch: (i64, i64)) -> Result<Vec<(i64, EventId)>, JobError> {
        let Class { kinds, authors, mentioned, .. } = &self.class;
        if !mentioned.is_empty() {
            // Whom an event mentions is not kept where it could be asked for.
            return Ok(Vec::new());
        }
        Ok(self.ctx.db.relay_witnesses(self.relay_id, stretch, kinds, authors, WITNESSES).await?)
    }

    /// Notes what the relay was found not to have any more.
    pub(super) async fn note_gone(&mut self, gone: Vec<(i64, EventId)>) -> Result<(), JobError> {
        if gone.is_empty() {
            return Ok(());
        }
        self.tally.gone += gone.len() as u64;
        self.facts.has_gone = true;
        let gone: Vec<(EventId, i64)> = gone.into_iter().map(|(at, id)| (id, at)).collect();
        let batch = ReconcileBatch {
            fence: &self.attempt.fence,
            relay_id: self.relay_id,
            at: clock::unix_now(),
            claimed: &[],
            gone: &gone,
            unserved: &[],
            coverage: None,
        };
        self.ctx.db.reconcile_store(&batch).await?.ok_or_else(lost)?;
        Ok(())
    }

    /// Stores a page while the next one is on its way: the relay has never more than one request of ours, and no page is
    /// read ahead before it is the turn of the one in hand, nor where there is no room for both.
    async fn store_and_ask(
        &mut self,
        page: Page,
        changed: bool,
        socket: &mut RelaySocket,
        next: Option<Filter>,
    ) -> Result<Option<Page>, JobError> {
        let next = next.map(|filter| self.narrow(filter));
        let ahead = next.and_then(|filter| self.share_ahead(&filter).map(|share| (filter, share)));
        let Some((filter, share)) = ahead else {
            self.store_page(page, changed).await?;
            return Ok(None);
        };
        let limits = self.limits(share.bytes());
        let turn = self.ctx.db.turn().await;
        let stored = async {
            let stored = self.store_now(page, changed).await;
            drop(turn);
            stored
        };
        let asked = async { Ok(socket.fetch(filter, limits).await) };
        let (_forged, next) = tokio::try_join!(stored, asked)?;
        self.room.enter(share, &next);
        self.note_asked(&next);
        Ok(Some(next))
    }

    /// One request, with what the class of the pass restricts.
    pub(super) async fn ask(&mut self, socket: &mut RelaySocket, filter: Filter) -> Page {
        let filter = self.narrow(filter);
        let page = self.fetch(socket, filter).await;
        self.note_asked(&page);
        page
    }

    fn note_asked(&mut self, page: &Page) {
        self.tally.requests += 1;
        self.largest = self.largest.max(page.facts.seen.len());
        self.filter_refused.get_or_insert_with(|| refuses_filter(&page.facts, &page.end));
    }

    /// Goes back to what is usually asked for in a page, where more brought less than that.
    fn ask_for_less(&mut self, smallest_cut: Option<usize>) {
        if smallest_cut.is_some_and(|cut| u32::try_from(cut).is_ok_and(|cut| cut < PAGE_USUAL)) {
            self.page_limit = self.page_limit.min(PAGE_USUAL);
        }
    }

    fn narrow(&self, mut filter: Filter) -> Filter {
        // A walk goes on with the limit it began with; of a page it knows the size at which they were seen to be cut.
        if filter.ids.is_empty() {
            filter.limit = filter.limit.map(|limit| limit.min(self.page_limit));
        }
        if filter.kinds.is_empty() {
            filter.kinds.clone_from(&self.class.kinds);
        }
        if filter.authors.is_empty() {
            filter.authors.clone_from(&self.class.authors);
        }
        if filter.mentioned.is_empty() {
            filter.mentioned.clone_from(&self.class.mentioned);
        }
        filter
    }

    /// What a page of at most so many bytes may cost.
    pub(super) fn limits(&self, max_bytes: u64) -> Limits {
        let config = &self.ctx.config;
        Limits {
            idle_ms: u64::try_from(config.page_idle.as_millis()).unwrap_or(u64::MAX),
            total_ms: u64::try_from(config.page_total.as_millis()).unwrap_or(u64::MAX),
            max_events: PAGE_EVENTS,
            max_bytes,
            max_stray_frames: PAGE_STRAY,
        }
    }

    /// A new connection in place of a spent one, where the fleet has a place on that machine. Where there is none, why: it
    /// says something of the relay only if that was reached by a way that works.
    pub(super) async fn reconnect(
        &mut self,
        socket: &mut RelaySocket,
    ) -> Result<Option<GapReason>, JobError> {
        let gap = self.open_anew(socket).await?;
        self.tally.ours |= gap == Some(GapReason::Stopped);
        Ok(gap)
    }

    async fn open_anew(&self, socket: &mut RelaySocket) -> Result<Option<GapReason>, JobError> {
        let Some(target) = &self.target else { return Ok(Some(GapReason::Stopped)) };
        if let Some(address) = target.address()
            && self.ctx.place(self.attempt, target.url().host(), address).await?.is_some()
        {
            return Ok(Some(GapReason::Stopped));
        }
        Ok(match RelaySocket::open_for_pages(&self.ctx.dialer, target).await {
            Ok(fresh) => {
                *socket = fresh;
                socket.identify(self.ctx.config.identity());
                None
            }
            Err(failure) if may_be_ours(self.ctx, target, failure.reason).await => Some(GapReason::Stopped),
            Err(_) => Some(GapReason::Disconnected),
        })
    }
}
