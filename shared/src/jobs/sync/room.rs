//! The share of the process's page memory ([`crate::jobs::room::PageRoom`]) that the page under way has.

use super::Pass;
use crate::jobs::room::{PAGE_BYTES, SHARE_BYTES, Share};
use crate::nips::Filter;
use crate::relay::{Page, RelaySocket};

/// What a pass holds of it: from before a page is asked for until it is stored.
#[derive(Debug, Default)]
pub(super) struct Room {
    share: Option<Share>,
    /// The last page was a large one.
    large: bool,
}

impl Room {
    /// Gives the share back.
    pub(super) fn leave(&mut self) {
        self.share = None;
    }

    /// A page came within this share; that of the page before it is given back.
    pub(super) fn enter(&mut self, share: Share, page: &Page) {
        self.share = Some(share);
        self.large = page.bytes > SHARE_BYTES / 2;
    }

    /// How large the page of this request may become: after a large one as large as a page may ever, and for one or two
    /// seconds too, which cannot be asked for in less.
    fn wanted(&self, filter: &Filter) -> u64 {
        let seconds = filter.until.zip(filter.since).map(|(until, since)| until.saturating_sub(since));
        let most = self.large || seconds.is_some_and(|seconds| seconds <= 1);
        if most { PAGE_BYTES } else { SHARE_BYTES }
    }
}

impl Pass<'_> {
    /// One request, once there is room for its page.
    pub(super) async fn fetch(&mut self, socket: &mut RelaySocket, filter: Filter) -> Page {
        self.room.leave();
        let share = self.ctx.pages.share(self.room.wanted(&filter)).await;
        let page = socket.fetch(filter, self.limits(share.bytes())).await;
        self.room.enter(share, &page);
        page
    }

    /// Room for one more page beside the one in hand, where nobody has to be waited for: who waits holds none.
    pub(super) fn share_ahead(&self, filter: &Filter) -> Option<Share> {
        self.ctx.pages.spare(self.room.wanted(filter))
    }
}
