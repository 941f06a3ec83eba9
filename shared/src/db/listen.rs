//! Hearing of new jobs over a direct connection: a convenience, polling suffices alone.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};

use super::{ACQUIRE_TIMEOUT, DbError, connect_options};

/// The channel `job_enqueue` notifies while a worker listens.
const CHANNEL: &str = "bigbrotr_jobs";
/// Longest a notification of our own may take to come back.
const PROBE: Duration = Duration::from_secs(2);

/// A connection that hears of new jobs, proved to work when it was made.
#[derive(Debug)]
pub struct JobListener {
    inner: PgListener,
}

impl JobListener {
    /// Connects, listens, and waits for a notification of its own: a pooler in between would take LISTEN
    /// and deliver nothing, or deliver to somebody else.
    ///
    /// # Errors
    /// What kept it from hearing itself, as a sentence.
    pub async fn connect(url: &str) -> Result<Self, DbError> {
        let options = connect_options(url, "bigbrotr listen")?;
        let work = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .max_lifetime(None)
                .idle_timeout(None)
                .connect_with(options)
                .await?;
            let mut inner = PgListener::connect_with(&pool).await?;
            inner.ignore_pool_close_event(true);
            // A connection that breaks is for the caller to notice: the fleet must not be told that we listen.
            inner.eager_reconnect(false);
            inner.listen(CHANNEL).await?;
            sqlx::query("SELECT pg_notify($1, 'probe')")
                .bind(CHANNEL)
                .persistent(false)
                .execute(&mut inner)
                .await?;
            Ok::<_, sqlx::Error>(inner)
        };
        let mut inner = match tokio::time::timeout(ACQUIRE_TIMEOUT, work).await {
            Ok(inner) => inner?,
            Err(_) => return Err(DbError::Timeout { seconds: ACQUIRE_TIMEOUT.as_secs() }),
        };
        match tokio::time::timeout(PROBE, inner.try_recv()).await {
            Ok(Ok(Some(_))) => Ok(Self { inner }),
            Ok(Ok(None)) => Err(DbError::Unavailable("the connection closed".to_owned())),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(DbError::Unavailable(
                "a notification of our own did not come back: this is no direct connection".to_owned(),
            )),
        }
    }

    /// Waits for the next notification; several that arrived together count once.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn recv(&mut self) -> Result<(), DbError> {
        match self.inner.try_recv().await? {
            Some(_) => {
                while self.inner.next_buffered().is_some() {}
                Ok(())
            }
            None => Err(DbError::Unavailable("the connection closed".to_owned())),
        }
    }
}
