//! One filter class after another; and of a relay that refuses the kinds of one, which it allows ([`KindSearch`]).
//!
//! Invariant: a class is given up for another only in the transaction that notes by which kinds the relay is asked from then
//! on and takes away what was claimed of the class.

use std::vec::IntoIter;

use super::super::cadence::SyncEnd;
use super::super::{JobError, lost};
use super::Pass;
use super::class::Class;
use crate::models::GapReason;
use crate::nips::{Filter, KindSearch};
use crate::relay::RelaySocket;

/// A search that found nothing, or broke off, is not made again for so long, seconds: it is some eighty requests.
const REST_S: i64 = 86_400;

/// Classes in a row that may break off in one pass: what breaks off may be of one class alone, or the relay.
const BROKEN_MAX: u32 = 3;

/// What came of asking a relay which kinds it allows.
enum Found {
    /// The classes by which it is read from now on.
    Classes(IntoIter<Class>),
    /// Nothing that changes what it is asked for.
    Nothing,
    /// It wants to be asked less.
    Limited,
}

impl Pass<'_> {
    /// Reads one class after another, until all is read, the relay will have no more of it, or some in a row broke off. Where the kinds of one are refused, it is found
    /// out, once in a pass, which are not.
    pub(super) async fn read_classes(
        &mut self,
        socket: &mut RelaySocket,
        mut others: IntoIter<Class>,
        floor: i64,
        now: i64,
    ) -> Result<SyncEnd, JobError> {
        let mut searched = false;
        let (mut worst, mut broken) = (SyncEnd::UpToDate, 0);
        loop {
            let end = self.read_class(socket, floor, now).await?;
            let refused = self.filter_refused == Some(true) && !self.class.kinds.is_empty();
            if refused && !searched {
                searched = true;
                match self.find_kinds(socket, now).await? {
                    Found::Classes(classes) => others = classes,
                    Found::Nothing => return Ok(end),
                    Found::Limited => return Ok(SyncEnd::RateLimited),
                }
                // What the class before claims is gone, and not written again.
                let Some(class) = others.next() else { return Ok(end) };
                self.begin(class, floor, now).await?;
                continue;
            }
            match end {
                SyncEnd::UpToDate => broken = 0,
                SyncEnd::Interrupted => (worst, broken) = (end, broken + 1),
                // Whose time is up after a fault waits as after a fault.
                SyncEnd::More if worst == SyncEnd::Interrupted => return Ok(worst),
                _ => return Ok(end),
            }
            if broken >= BROKEN_MAX {
                return Ok(worst);
            }
            let Some(class) = others.next() else { return Ok(worst) };
            self.turn_to(class, floor, now).await?;
        }
    }

    /// Finds out which kinds the relay allows, on the connection on which it refused those of the class. What that brings is
    /// not kept: the walk brings it again.
    async fn find_kinds(&mut self, socket: &mut RelaySocket, now: i64) -> Result<Found, JobError> {
        let (db, fence) = (&self.ctx.db, &self.attempt.fence);
        if db.relay_kinds(self.relay_id).await?.off_until.is_some_and(|until| until > now) {
            return Ok(Found::Nothing);
        }
        let mut search = KindSearch::new(Class::to_try(db, self.class.kinds.clone(), now).await?);
        while let Some(kinds) = search.next() {
            if self.is_over() || !socket.is_usable() {
                break;
            }
            let filter = Filter { kinds, since: Some(0), limit: Some(1), ..Filter::default() };
            let page = self.ask(socket, filter).await;
            self.room.leave();
            self.tally.bytes += page.bytes;
            search.on_answer(&page.facts, &page.end);
            if page.end.gap() == GapReason::RateLimited {
                let held = db.relay_kinds_rest(fence, self.relay_id, now + REST_S).await?;
                return if held { Ok(Found::Limited) } else { Err(lost()) };
            }
        }
        // Where it allows all that it has just refused, it was not that.
        let news = search.found().filter(|allowed| {
            !allowed.is_empty() && !self.class.kinds.iter().all(|kind| allowed.contains(kind))
        });
        let Some(allowed) = news else {
            let held = db.relay_kinds_rest(fence, self.relay_id, now + REST_S).await?;
            return if held { Ok(Found::Nothing) } else { Err(lost()) };
        };
        if !db.relay_kinds_set(fence, self.relay_id, allowed).await? {
            return Err(lost());
        }
        tracing::info!(relay.id = self.relay_id, kinds = allowed.len(), "a relay allows some kinds only");
        let classes = Class::of_relay(db, fence, self.relay_id, self.narrowed, now).await?;
        Ok(Found::Classes(classes.into_iter()))
    }
}
