//! PostgreSQL: one Rust function per stored function, and nothing else that writes.
//!
//! Every statement goes through [`Db`]'s two helpers: unnamed, inside `BEGIN … COMMIT`, with built-in types
//! only. That is what survives PgBouncer in transaction mode, 1.18 included (measured: a named statement, or
//! an unnamed one outside a transaction, fails now and then). This room knows nothing of sockets to relays,
//! of the Nostr protocol, or of job handlers.

mod alerts;
mod archive;
mod candidates;
mod capability;
mod discover;
mod error;
mod export;
mod fleet;
mod import;
mod ingest;
mod inspect;
mod jobs;
mod judge;
mod keep;
mod lead;
mod listen;
mod maintain;
mod migrate;
mod moment;
mod monitors;
mod observe;
mod operate;
mod pace;
mod presence;
mod publish;
mod read;
mod reconcile;
mod review;
mod rows;
mod uptime;
mod verify;
mod views;
mod walk;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

pub use alerts::{AlertLine, AlertRow, Delivery};
pub use archive::{EventRow, NewCoverage, StoreBatch, Stored};
pub use candidates::{
    CandidateLine, CandidateRow, CappedLine, ExclusionLine, NewCandidate, SourceLine, Sources, ValidateResult,
};
pub use capability::{CapabilityResult, CapabilityRow, DifferenceLine, WriteRow};
pub use discover::{Asked, Found, Sighted, Sighting, UnminedEvent};
pub use error::DbError;
pub use export::{ExportBatch, ExportCoverage, ExportItem, ExportScope, LeftOut, SeenOn};
pub use fleet::{FleetLimits, GaugeLine, HostAsked, HostPermit};
pub use import::{Imported, ImportedObservation, Named, UrlCaps};
pub use ingest::{DenseFacts, ForgeryRow, KnownPage, SigHead, SpecimenLine, SpecimenRow};
pub use inspect::{
    HorizonLine, LeaderLine, ReadCount, UnreadLine, Unsettled, WalArchiving, is_beyond_any_lease,
};
pub use jobs::{Claimed, Enqueued, Exchange, Exchanged, Finished, NewJob, Registration, Unreadable, Wanted};

pub use judge::{CheckRow, MonitorResult, OpinionRow, RelayRow};
pub use keep::{ArchiveState, Fate, Horizons, LightenPlan, PlanLine, RetentionStep};
pub use lead::{Tick, TickKind};
pub use listen::JobListener;
pub use maintain::Rescued;
pub use migrate::{
    BESIDE_A_FLEET, DIRECT_LOCK, MIGRATOR, MigrateOptions, apply_grants, connect_direct, prepare_roles,
    run_migrations,
};
pub use moment::SETTLE_S;
pub use monitors::DisagreementLine;
pub use observe::ScheduleTarget;
pub use operate::{Actor, Autoscale, Board, OperationLine, Selection, WhyLine};
pub use pace::Pace;
pub use presence::{MonthLine, PresenceLine, ShareLine};
pub use publish::{DeliveryRow, NewPublication, PendingPublication, PublicationLine, PublishingRelay, Visit};
pub use read::{CoverageLine, FleetStats, JobLine, QueueLine, RelayLine, RelayPage};
pub use reconcile::{ReconcileBatch, Revisited, SyncBegin, SyncFacts};
pub use review::ReviewPiece;
pub use uptime::{LivenessLine, Percentiles, ReliabilityLine, UptimeLine};
pub use verify::{Corruption, Sample, SetLine, VerifyProgress, VerifyReport};
pub use views::{Backlog, Counted, VIEWS};
pub use walk::{AsideLine, Batch, ForgeryLimit, Missing, RelayKinds};

/// Longest a single statement may take before it counts as lost.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// SQLSTATE of a statement that the server gave up.
const QUERY_CANCELED: &str = "57014";
/// By how much the server's limit is shorter than ours, milliseconds.
const MARGIN_MS: u128 = 2_000;
/// Longest we wait for a free connection, or for a new one.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an idle connection is taken to be as it was when it was put back.
const TRUSTED: Duration = Duration::from_secs(1);
/// How long a connection may take to say that it is there, before another takes its place.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A pool of connections that is safe behind a transaction pooler.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
    timeout: Duration,
    turns: Arc<Semaphore>,
    returns: TaskTracker,
}

/// Connections that work which can wait leaves to work that cannot.
const LEFT_FREE: u32 = 2;

/// Parses a connection URL into options fit for a pooler.
///
/// # Errors
/// [`DbError::Url`] when the text is no PostgreSQL URL; the message never holds the password.
pub fn connect_options(url: &str, application: &str) -> Result<PgConnectOptions, DbError> {
    // sqlx takes any scheme; an operator who pasted something else should hear of it.
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(DbError::Url);
    }
    Ok(PgConnectOptions::from_str(url)
        .map_err(|_| DbError::Url)?
        .application_name(application)
        // PgBouncer refuses start-up parameters it does not know; we need no extra float digits.
        .extra_float_digits(None)
        .statement_cache_capacity(0)
        .disable_statement_logging())
}

impl Db {
    /// A pool of at most `max` connections, opened when first needed: a database that is away
    /// is a reason to wait, not to exit.
    ///
    /// # Errors
    /// [`DbError::Url`] when the URL does not parse.
    pub fn lazy(url: &str, application: &str, max: u32) -> Result<Self, DbError> {
        let options = connect_options(url, application)?;
        let pool = PgPoolOptions::new()
            .max_connections(max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // It was pinged when it came back: one more round trip per statement only where that was a while ago.
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED {
                        let answer = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
                        answer.map_err(|late| sqlx::Error::Io(late.into()))??;
                    }
                    Ok(true)
                })
            })
            .idle_timeout(Duration::from_secs(120))
            .connect_lazy_with(options);
        let turns = max.saturating_sub(LEFT_FREE).max(1);
        let turns = Arc::new(Semaphore::new(usize::try_from(turns).unwrap_or(usize::MAX)));
        Ok(Self { pool, timeout: STATEMENT_TIMEOUT, turns, returns: TaskTracker::new() })
    }

    /// Like [`Db::lazy`], after proving that the server answers: for commands, which should fail at once and
    /// with the server's own reason.
    ///
    /// # Errors
    /// What kept us from connecting, as a sentence.
    pub async fn connect(url: &str, application: &str, max: u32) -> Result<Self, DbError> {
        let options = connect_options(url, application)?;
        let (host, port) = (options.get_host().to_owned(), options.get_port());
        match tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect()).await {
            Ok(Ok(connection)) => connection.close().await?,
            Ok(Err(error)) => {
                return Err(match DbError::from(error) {
                    DbError::Unavailable(why) => DbError::Unavailable(format!("{host}:{port}: {why}")),
                    other => other,
                });
            }
            Err(_) => return Err(DbError::Unavailable(format!("{host}:{port} does not answer"))),
        }
        Self::lazy(url, application, max)
    }

    /// The same pool with another limit per statement, for statements known to be long.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Waits, in the order of asking and as long as it takes, until work that can wait may begin; it is through when the
    /// permit goes. A connection itself is waited for ten seconds only: behind a database that takes five for each page,
    /// hundreds of jobs would fail one after the other, each with a page that was read.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// Asks the server for its version number (150020 for 15.20) and so proves that it answers.
    pub async fn ping(&self) -> Result<i32, DbError> {
        let row =
            self.one(sqlx::query("SELECT current_setting('server_version_num')::integer AS version")).await?;
        rows::get(&row, "version")
    }

    /// Closes every connection and waits for them.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Runs one statement in its own transaction and returns its rows.
    async fn all(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, DbError> {
        let work = async {
            // The server gives up before we do, so that nothing we forgot goes on there.
            let limit = self.timeout.as_millis().saturating_sub(MARGIN_MS).max(MARGIN_MS);
            let begin = format!("BEGIN; SET LOCAL statement_timeout = {limit}");
            let mut lent = Lent { connection: self.pool.acquire().await?, returns: self.returns.clone() };
            let mut transaction = lent.connection.begin_with(sqlx::AssertSqlSafe(begin)).await?;
            let rows = query.persistent(false).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            Ok::<_, sqlx::Error>(rows)
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(Err(sqlx::Error::PoolTimedOut)) => Err(self.why_unreachable().await),
            Ok(Err(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some(QUERY_CANCELED)
                    && error.message().contains("statement timeout") =>
            {
                Err(DbError::Timeout { seconds: self.timeout.as_secs() })
            }
            Ok(result) => result.map_err(DbError::from),
            Err(_) => Err(DbError::Timeout { seconds: self.timeout.as_secs() }),
        }
    }

    /// The pool only says that it waited: one attempt of our own tells why.
    async fn why_unreachable(&self) -> DbError {
        let options = self.pool.connect_options();
        match tokio::time::timeout(Duration::from_secs(2), options.connect()).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(_)) => {
                DbError::Unavailable(format!("no connection was free within {} s", ACQUIRE_TIMEOUT.as_secs()))
            }
            Err(_) => DbError::Unavailable("it does not answer".to_owned()),
        }
    }

    /// Runs one statement that returns exactly one row.
    async fn one(&self, query: Query<'_, Postgres, PgArguments>) -> Result<PgRow, DbError> {
        let mut rows = self.all(query).await?;
        rows.pop()
            .ok_or(DbError::Decode { column: "(row)", problem: "the statement returned no row".to_owned() })
    }
}

/// A connection of the pool. Going back it is asked whether it is there; left to itself, the pool waits for that with one of
/// its places, as long as TCP does, a quarter of an hour: for a machine that is gone without a word, and for the rest of
/// a statement that nobody waits for any more.
struct Lent {
    connection: PoolConnection<Postgres>,
    returns: TaskTracker,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let back = self.connection.return_to_pool();
        self.returns.spawn(async move {
            // Given up, it is closed, and its place is free.
            tokio::time::timeout(PING_TIMEOUT, back).await.ok();
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn work_that_can_wait_takes_turns_and_leaves_connections_free() {
        let db = Db::lazy("postgres://nobody@127.0.0.1:1/none", "test", 4).unwrap();
        let (first, second) = (db.turn().await, db.with_timeout(Duration::ZERO).turn().await);
        let mut third = Box::pin(db.turn());
        assert!(first.is_some() && second.is_some() && (&mut third).now_or_never().is_none());
        drop(first);
        assert!(third.now_or_never().flatten().is_some());
        // There is always one.
        assert!(Db::lazy("postgres://nobody@127.0.0.1:1/none", "test", 1).unwrap().turn().await.is_some());
    }
}
