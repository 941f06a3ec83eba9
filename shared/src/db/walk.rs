//! What a walk goes by beside coverage: witnesses, batches of authors, and relays set aside for what they forge.

use super::reconcile::items;
use super::rows::{get, small_count};
use super::{Actor, Db, DbError};
use crate::models::{EventId, Fence, RelayUrl};

/// Authors, or people mentioned, by whom a relay is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The filter class that asking for them makes.
    pub class: String,
    /// Who.
    pub pubkeys: Vec<[u8; 32]>,
    /// The kinds named with them; empty: none.
    pub kinds: Vec<u16>,
}

/// What was found out of the kinds by which a relay lets itself be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayKinds {
    /// Those it allows, ascending; `None`: not known.
    pub allowed: Option<Vec<u16>>,
    /// Nothing was found when it refused some: not before this is it tried again, Unix seconds.
    pub off_until: Option<i64>,
}

/// How much of what a relay serves may be forged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForgeryLimit {
    /// Fewer than so many in a week are borne, whatever their share.
    pub floor: u32,
    /// And a smaller share than this, in percent; 0: any.
    pub percent: u32,
    /// Days for which it is set aside then; 0: never.
    pub days: u32,
}

/// An event that a relay was seen to have, and did not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// When it says it was made, Unix seconds.
    pub created_at: i64,
    /// Its id.
    pub id: EventId,
    /// Whether relays keep its kind, and it was neither deleted nor expired.
    pub kept: bool,
}

/// A relay that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsideLine {
    /// Since when, Unix seconds.
    pub aside_at: i64,
    /// Until when.
    pub until_at: i64,
    /// Events that did not verify in the week before.
    pub forged: i64,
    /// Of so many delivered.
    pub delivered: i64,
}

impl Db {
    /// A few events that a relay is known to have had in `[since, until]`: the oldest, and others spread over time. Empty
    /// lists restrict nothing.
    pub async fn relay_witnesses(
        &self,
        relay_id: i32,
        (since, until): (i64, i64),
        kinds: &[u16],
        authors: &[[u8; 32]],
        limit: i32,
    ) -> Result<Vec<(i64, EventId)>, DbError> {
        let rows = self
            .all(
                sqlx::query("SELECT created_at, id FROM relay_witnesses($1, $2, $3, $4, $5, $6)")
                    .bind(relay_id)
                    .bind(since)
                    .bind(until)
                    .bind(numbers(kinds))
                    .bind(authors.iter().map(<[u8; 32]>::as_slice).collect::<Vec<_>>())
                    .bind(limit),
            )
            .await?;
        items(&rows)
    }

    /// What was seen on a relay in these stretches, no later than at `seen_until`, is not thought gone from it, and is not among
    /// the events of these keys: newest first, of the `limit` newest. Empty lists of kinds and authors restrict nothing.
    pub async fn relay_missing(
        &self,
        relay_id: i32,
        stretches: &[(i64, i64)],
        served: &[i64],
        seen_until: i64,
        (kinds, authors): (&[u16], &[[u8; 32]]),
        limit: i32,
    ) -> Result<Vec<Missing>, DbError> {
        if stretches.is_empty() {
            return Ok(Vec::new());
        }
        let (sinces, untils): (Vec<i64>, Vec<i64>) = stretches.iter().copied().unzip();
        let rows = self
            .all(
                sqlx::query("SELECT created_at, id, kept FROM relay_missing($1, $2, $3, $4, $5, $6, $7, $8)")
                    .bind(relay_id)
                    .bind(sinces)
                    .bind(untils)
                    .bind(served.to_vec())
                    .bind(seen_until)
                    .bind(numbers(kinds))
                    .bind(authors.iter().map(<[u8; 32]>::as_slice).collect::<Vec<_>>())
                    .bind(limit),
            )
            .await?;
        let found = items(&rows)?.into_iter().zip(&rows);
        found.map(|((created_at, id), row)| Ok(Missing { created_at, id, kept: get(row, "kept")? })).collect()
    }

    /// The batches by which a relay is asked, oldest first; `what` is `authors`, `mentions` or `kinds+authors`.
    pub async fn relay_batches(&self, relay_id: i32, what: &str) -> Result<Vec<Batch>, DbError> {
        let query = sqlx::query("SELECT class, pubkeys, kinds FROM relay_batches_of($1, $2)");
        let rows = self.all(query.bind(relay_id).bind(what)).await?;
        rows.iter()
            .map(|row| Ok(batch(get(row, "class")?, get(row, "pubkeys")?, get(row, "kinds")?)))
            .collect()
    }

    /// Begins another batch, of at most `size`, where there are fewer than `most`, with the kinds that are named with them;
    /// the inner `None`: nobody is left to make one of. The outer: the job was not ours.
    pub async fn relay_batch_begin(
        &self,
        fence: &Fence,
        relay_id: i32,
        at: i64,
        what: &str,
        (size, most): (i32, i32),
        kinds: &[u16],
    ) -> Result<Option<Option<Batch>>, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT held, class, pubkeys FROM relay_batch_begin_of($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                )
                .bind(fence.job())
                .bind(fence.worker())
                .bind(fence.attempt())
                .bind(relay_id)
                .bind(at)
                .bind(what)
                .bind(size)
                .bind(most)
                .bind(numbers(kinds)),
            )
            .await?;
        if !get::<bool>(&row, "held")? {
            return Ok(None);
        }
        let class: Option<String> = get(&row, "class")?;
        let pubkeys: Option<Vec<Vec<u8>>> = get(&row, "pubkeys")?;
        Ok(Some(class.zip(pubkeys).map(|(class, pubkeys)| batch(class, pubkeys, numbers(kinds)))))
    }

    /// What was found out of the kinds by which a relay lets itself be asked.
    pub async fn relay_kinds(&self, relay_id: i32) -> Result<RelayKinds, DbError> {
        let query = sqlx::query("SELECT kinds, off_until FROM relay_kinds($1)").bind(relay_id);
        let row = self.one(query).await?;
        let allowed: Option<Vec<i32>> = get(&row, "kinds")?;
        Ok(RelayKinds { allowed: allowed.map(narrow), off_until: get(&row, "off_until")? })
    }

    /// Notes which kinds a relay allows, ascending, and forgets what was read of it by others; false when the job was not
    /// ours.
    pub async fn relay_kinds_set(
        &self,
        fence: &Fence,
        relay_id: i32,
        kinds: &[u16],
    ) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT relay_kinds_set($1, $2, $3, $4, $5) AS held")
            .bind(fence.job())
            .bind(fence.worker())
            .bind(fence.attempt())
            .bind(relay_id)
            .bind(numbers(kinds));
        get(&self.one(query).await?, "held")
    }

    /// Notes that nothing was found, and until when it is not tried again, Unix seconds; false when the job was not ours.
    pub async fn relay_kinds_rest(&self, fence: &Fence, relay_id: i32, until: i64) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT relay_kinds_rest($1, $2, $3, $4, $5) AS held")
            .bind(fence.job())
            .bind(fence.worker())
            .bind(fence.attempt())
            .bind(relay_id)
            .bind(until);
        get(&self.one(query).await?, "held")
    }

    /// Counts what of a pass was forged; whether the relay is set aside for it, or `None` when the job was not ours.
    pub async fn forgery_weigh(
        &self,
        fence: &Fence,
        relay_id: i32,
        at: i64,
        (delivered, forged): (u64, u64),
        limit: ForgeryLimit,
    ) -> Result<Option<bool>, DbError> {
        let int = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let small = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let row = self
            .one(
                sqlx::query("SELECT held, aside FROM forgery_weigh($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(relay_id)
                    .bind(at)
                    .bind(int(delivered))
                    .bind(int(forged))
                    .bind(i64::from(limit.floor))
                    .bind(small(limit.percent))
                    .bind(small(limit.days)),
            )
            .await?;
        Ok(if get(&row, "held")? { Some(get(&row, "aside")?) } else { None })
    }

    /// Until when a relay is set aside, Unix seconds, if it is.
    pub async fn relay_aside_until(&self, relay_id: i32) -> Result<Option<i64>, DbError> {
        get(&self.one(sqlx::query("SELECT relay_aside_until($1) AS until").bind(relay_id)).await?, "until")
    }

    /// Syncs relays again that were set aside; returns how many were.
    pub async fn relay_forgive(&self, urls: &[RelayUrl], actor: &Actor) -> Result<u64, DbError> {
        let urls: Vec<String> = urls.iter().map(|url| url.as_str().to_owned()).collect();
        let query = sqlx::query("SELECT relay_forgive($1, $2, $3) AS n").bind(urls);
        small_count(&self.one(query.bind(&actor.name).bind(&actor.why)).await?, "n")
    }

    /// Whether one relay is set aside, and why; for who may SELECT.
    pub async fn relay_set_aside(&self, url: &RelayUrl) -> Result<Option<AsideLine>, DbError> {
        let query = sqlx::query(
            "SELECT aside_at, until_at, forged, delivered FROM relay_set_aside WHERE relay_url = $1",
        );
        let rows = self.all(query.bind(url.as_str().to_owned())).await?;
        let line = rows.first().map(|row| {
            Ok(AsideLine {
                aside_at: get(row, "aside_at")?,
                until_at: get(row, "until_at")?,
                forged: get(row, "forged")?,
                delivered: get(row, "delivered")?,
            })
        });
        line.transpose()
    }
}

fn batch(class: String, pubkeys: Vec<Vec<u8>>, kinds: Vec<i32>) -> Batch {
    let pubkeys = pubkeys.into_iter().filter_map(|key| key.try_into().ok()).collect();
    Batch { class, pubkeys, kinds: narrow(kinds) }
}

/// Kinds as the database has them.
fn numbers(kinds: &[u16]) -> Vec<i32> {
    kinds.iter().copied().map(i32::from).collect()
}

/// And back; what is no kind is left out.
fn narrow(kinds: Vec<i32>) -> Vec<u16> {
    kinds.into_iter().filter_map(|kind| kind.try_into().ok()).collect()
}
