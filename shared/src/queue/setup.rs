//! Bringing a database to the schema of this program: roles, our tables, apalis's tables, grants.

use apalis_postgres::PostgresStorage;
use sqlx::{Connection, PgConnection};

use crate::db::{self, DbError, MigrateOptions};

/// Completes apalis's tables; idempotent, applied after every set-up.
const TABLES: &str = include_str!("tables.sql");
/// The operators' views over them; idempotent likewise.
const VIEWS: &str = include_str!("views.sql");
/// The same where an older version's have other columns: these cannot be replaced, and what an operator built on them must go first.
const VIEWS_ANEW: &str = concat!(
    "DROP VIEW IF EXISTS public.autoscale_desired, public.relay_due, public.workers, public.jobs_running, public.queue_depth;\n",
    include_str!("views.sql")
);

/// Migrates the database behind `url`, which must be a direct connection.
///
/// Concurrent calls wait for each other; a second call changes nothing.
///
/// # Errors
/// [`DbError`] with a sentence an operator can act on.
pub async fn migrate(url: &str, options: &MigrateOptions) -> Result<(), DbError> {
    let mut connection = db::connect_direct(url).await?;
    db::prepare_roles(&mut connection, options).await?;
    db::run_migrations(&mut connection).await?;
    set_up_apalis(&mut connection).await?;
    complete(&mut connection, TABLES).await?;
    match complete(&mut connection, VIEWS).await {
        Err(error) if error.is_other_columns() => complete(&mut connection, VIEWS_ANEW).await?,
        done => done?,
    }
    db::apply_grants(&mut connection, options).await?;
    connection.close().await?;
    Ok(())
}

/// Beside a fleet at work somebody may hold one of these tables and wait for another: who gives way begins anew.
async fn complete(connection: &mut PgConnection, block: &'static str) -> Result<(), DbError> {
    let mut tries = db::BESIDE_A_FLEET;
    loop {
        tries -= 1;
        match sqlx::raw_sql(block).execute(&mut *connection).await.map_err(DbError::from) {
            Err(error) if error.is_deadlock() && tries > 0 => {}
            done => return done.map(drop),
        }
    }
}

/// apalis's own tables alone, as every version of ours finds them.
///
/// # Errors
/// [`DbError::Migrate`] with apalis's words.
pub async fn set_up_apalis(connection: &mut PgConnection) -> Result<(), DbError> {
    PostgresStorage::<()>::migrations()
        .run(connection)
        .await
        .map_err(|error| DbError::Migrate(format!("apalis: {error}")))
}
