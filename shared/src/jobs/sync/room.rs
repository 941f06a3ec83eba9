//! The share of the process's page memory ([`PageRoom`]) that the page under way has.

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
    /// How large the page under way may become.
    pub(super) fn bytes(&self) -> u64 {
        self.share.as_ref().map_or(0, Share::bytes)
    }

    /// Gives the share back.
    pub(super) fn leave(&mut self) {
        self.share = None;
    }
}

impl Pass<'_> {
    /// One request, once there is room for its page. After a large one there is to be as much as a page may ever take, and
    /// for one or two seconds too, which cannot be asked for in less.
    pub(super) async fn fetch(&mut self, socket: &mut RelaySocket, filter: Filter) -> Page {
        self.room.leave();
        let seconds = filter.until.zip(filter.since).map(|(until, since)| until.saturating_sub(since));
        let most = self.room.large || seconds.is_some_and(|seconds| seconds <= 1);
        let bytes = if most { PAGE_BYTES } else { SHARE_BYTES };
        self.room.share = Some(self.ctx.pages.share(bytes).await);
        let page = socket.fetch(filter, self.limits()).await;
        self.room.large = page.bytes > SHARE_BYTES / 2;
        page
    }
}
