//! Seconds that hold more than a page: asked for in parts ([`Dense`]), and recorded as gaps all the same.

use super::Pass;
use crate::jobs::JobError;
use crate::models::{EnvelopeFacts, Event};
use crate::nips::{Dense, DenseSpec};
use crate::relay::{PageEvent, RelaySocket};

/// Seconds split in one pass; the others when they are asked for again.
const SECONDS: usize = 8;
/// Most requests for one of them.
const REQUESTS: u32 = 200;
/// Kinds and authors taken from the archive for one of them.
const KINDS: i32 = 400;
const AUTHORS: i32 = 1_000;

impl Pass<'_> {
    /// Splits the seconds that this pass found dense, newest first, until the relay answers by anything but EOSE: it is
    /// not asked what it has just refused, and reconnected to once at most.
    pub(super) async fn split_dense(&mut self, socket: &mut RelaySocket) -> Result<(), JobError> {
        let seconds: Vec<i64> = self.dense.iter().rev().copied().take(SECONDS).collect();
        for second in seconds {
            let known = self.ctx.db.dense_facts(second, KINDS, AUTHORS).await?;
            let allowed = &self.class.kinds;
            let kinds =
                known.kinds.into_iter().filter(|kind| allowed.is_empty() || allowed.contains(kind)).collect();
            let mut plan = Dense::new(DenseSpec {
                second,
                limit: self.page_limit,
                page_shown: self.largest,
                kinds,
                authors: if self.class.authors.is_empty() {
                    known.authors
                } else {
                    self.class.authors.clone()
                },
                max_requests: REQUESTS,
                until_exclusive: self.until_exclusive,
            });
            let mut ended = false;
            while let Some(filter) = plan.next().filter(|_| !ended) {
                if self.is_over() || (!socket.is_usable() && !self.reconnect(socket).await?) {
                    return Ok(());
                }
                let page = self.ask(socket, filter).await;
                let facts: Vec<EnvelopeFacts> = page.events.iter().map(|event| *event.facts()).collect();
                ended = !page.end.is_eose();
                plan.on_page(&facts, &mentions(&page.events), !ended);
                self.store_page(page, false).await?;
            }
            self.tally.dense_requests += u64::from(plan.requests());
            self.tally.dense_seconds += 1;
            if ended {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Public keys in p tags.
fn mentions(page: &[PageEvent]) -> Vec<[u8; 32]> {
    let events = page.iter().filter_map(|event| Event::parse(event.json()).ok());
    let keys = events.flat_map(|event| {
        let tags = event.tags().iter().filter(|tag| tag.first().is_some_and(|name| name == "p"));
        tags.filter_map(|tag| hex::decode(tag.get(1)?).ok()?.try_into().ok()).collect::<Vec<[u8; 32]>>()
    });
    keys.collect()
}
