//! What an export leaves out, and of what is held: what may not be handed on.

use super::{Db, DbError, ExportItem};
use crate::clock;
use crate::models::Unkept;

/// Why an event of the scope is not in the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// Known and not kept, by policy.
    Skipped,
    /// Deleted by its author, or on request; also where its body is yet to go.
    Deleted,
    /// Past its own expiration; also where its body is yet to go.
    Expired,
    /// A direct message, a seal, a gift wrap, and nobody asked for them.
    Private,
    /// Its author wants no copies (NIP-70), and nobody asked for them.
    Protected,
    /// Seen by nobody at or before `as_of`.
    Unseen,
    /// Archived without a body, or without a signature.
    Bodiless,
    /// Its row does not hash to its id any more.
    Corrupt,
}

impl LeftOut {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Skipped,
        Self::Deleted,
        Self::Expired,
        Self::Private,
        Self::Protected,
        Self::Unseen,
        Self::Bodiless,
        Self::Corrupt,
    ];

    /// Its word in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::Private => "private",
            Self::Protected => "protected",
            Self::Unseen => "unseen",
            Self::Bodiless => "bodiless",
            Self::Corrupt => "corrupt",
        }
    }

    const fn of(class: Unkept) -> Self {
        match class {
            Unkept::Ephemeral => Self::Skipped,
            Unkept::Private => Self::Private,
            Unkept::Protected => Self::Protected,
            Unkept::Expired => Self::Expired,
            Unkept::Deleted => Self::Deleted,
        }
    }
}

impl Db {
    /// Leaves out what is held and may not be handed on: what its author asked to have deleted (as ingest looks it up,
    /// whether the request was applied yet or not), what has expired by now, and the classes that `with` does not name.
    ///
    /// Requests are looked up after the events were read: one that was noted before an event was read counts for it.
    pub(super) async fn withhold(&self, with: &[Unkept], items: &mut [ExportItem]) -> Result<(), DbError> {
        let mut classes = vec![Unkept::Expired];
        classes
            .extend([Unkept::Private, Unkept::Protected].into_iter().filter(|class| !with.contains(class)));
        let now = clock::unix_now();
        for item in &mut *items {
            let class = item.event.as_ref().ok().and_then(|(event, _)| Unkept::of(event, &classes, now));
            if let Some(class) = class {
                item.event = Err(LeftOut::of(class));
            }
        }
        let (places, events): (Vec<usize>, Vec<_>) = items
            .iter()
            .enumerate()
            .filter_map(|(at, item)| item.event.as_ref().ok().map(|(event, _)| (at, event)))
            .unzip();
        for hit in self.tombstone_hits(&events).await? {
            if let Some(item) = places.get(hit).and_then(|&at| items.get_mut(at)) {
                item.event = Err(LeftOut::Deleted);
            }
        }
        Ok(())
    }
}
