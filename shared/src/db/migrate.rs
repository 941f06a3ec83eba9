//! Bringing a database to this program's schema: roles, migrations, grants.
//!
//! Works on a direct connection (never through a transaction pooler: it takes a session lock), as any user
//! that may create roles and owns the database; everything is owned by `<prefix>_admin`, so that the
//! SECURITY DEFINER functions never run as a superuser.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Row};

use super::{DbError, connect_options};

/// The migrations this program was built with.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// Advisory lock that makes concurrent migrations wait for each other.
pub const DIRECT_LOCK: i64 = 7300;

/// Oldest PostgreSQL whose features the schema uses.
const OLDEST_MAJOR: u32 = 15;

/// What an operator may choose about roles.
#[derive(Clone)]
pub struct MigrateOptions {
    /// First part of the four role names.
    pub prefix: String,
    /// Passwords to set, as (role suffix, password).
    pub passwords: Vec<(String, String)>,
}

impl Default for MigrateOptions {
    fn default() -> Self {
        Self { prefix: "bigbrotr".to_owned(), passwords: Vec::new() }
    }
}

impl std::fmt::Debug for MigrateOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MigrateOptions").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Opens a direct connection, checks the server's version, and takes the migration lock.
pub async fn connect_direct(url: &str) -> Result<PgConnection, DbError> {
    let mut connection = connect_options(url, "bigbrotr migrate")?.connect().await?;
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::integer / 10000 AS major, version() AS text",
    )
    .persistent(false)
    .fetch_one(&mut connection)
    .await?;
    let major: i32 = row.try_get("major")?;
    if u32::try_from(major).unwrap_or(0) < OLDEST_MAJOR {
        return Err(DbError::Version { found: major.to_string(), wanted: OLDEST_MAJOR });
    }
    sqlx::query("SELECT pg_advisory_lock($1)")
        .persistent(false)
        .bind(DIRECT_LOCK)
        .execute(&mut connection)
        .await?;
    Ok(connection)
}

/// Creates the four roles where they are missing, sets passwords, and becomes `<prefix>_admin`.
pub async fn prepare_roles(connection: &mut PgConnection, options: &MigrateOptions) -> Result<(), DbError> {
    if options.prefix.is_empty()
        || options.prefix.len() > 32
        || !options.prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    {
        return Err(DbError::Migrate(format!(
            "the role prefix {:?} must be 1 to 32 of a-z, 0-9 and _",
            options.prefix
        )));
    }
    set(connection, "bigbrotr.prefix", &options.prefix).await?;
    run(connection, ROLES).await?;
    for (suffix, password) in &options.passwords {
        set(connection, "bigbrotr.role", &format!("{}_{suffix}", options.prefix)).await?;
        set(connection, "bigbrotr.password", password).await?;
        run(connection, PASSWORD).await?;
        set(connection, "bigbrotr.password", "").await?;
    }
    run(connection, BECOME_ADMIN).await
}

/// Runs the migrations that this database does not have yet.
pub async fn run_migrations(connection: &mut PgConnection) -> Result<(), DbError> {
    MIGRATOR.run(connection).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => DbError::Migrate(format!(
            "the database has schema version {version}, which is newer than this program: update the program"
        )),
        MigrateError::VersionMismatch(version) => DbError::Migrate(format!(
            "migration {version} of this database is not the one of this program: it was made by another build"
        )),
        other => DbError::Migrate(other.to_string()),
    })
}

/// Makes the partitions needed now and gives the roles what they may do.
pub async fn apply_grants(connection: &mut PgConnection, options: &MigrateOptions) -> Result<(), DbError> {
    let made = sqlx::query("SELECT partition_maintain(extract(epoch FROM now())::bigint)")
        .persistent(false)
        .execute(&mut *connection)
        .await
        .map_err(DbError::from);
    match made {
        // A long reader is in the way: the scheduler makes them later.
        Err(error) if !error.is_busy() => return Err(error),
        _ => {}
    }
    let mut tries = BESIDE_A_FLEET;
    loop {
        tries -= 1;
        let granted = sqlx::query("SELECT roles_grant($1)")
            .persistent(false)
            .bind(&options.prefix)
            .execute(&mut *connection)
            .await
            .map_err(DbError::from);
        match granted {
            // "tuple concurrently updated": maintenance of a fleet at work changed the same row of the catalogue.
            Err(DbError::Server { code, .. }) if code == "XX000" && tries > 0 => {}
            Err(error) if error.is_deadlock() && tries > 0 => {}
            granted => return granted.map(drop),
        }
    }
}

/// How often a step is tried beside a fleet at work.
pub const BESIDE_A_FLEET: u32 = 5;

/// Values reach the blocks below as settings, so that no text is ever spliced into SQL by us.
async fn set(connection: &mut PgConnection, name: &str, value: &str) -> Result<(), DbError> {
    sqlx::query("SELECT set_config($1, $2, false)")
        .persistent(false)
        .bind(name)
        .bind(value)
        .execute(connection)
        .await?;
    Ok(())
}

async fn run(connection: &mut PgConnection, block: &'static str) -> Result<(), DbError> {
    sqlx::raw_sql(block).execute(connection).await.map(drop).map_err(|error| match DbError::from(error) {
        DbError::Forbidden(message) => DbError::Forbidden(format!(
            "{message}; migrate as a superuser, or as the database's owner with CREATEROLE"
        )),
        other => other,
    })
}

/// Roles are shared by all databases of a server: another database's migration may create them meanwhile.
const ROLES: &str = r"
DO $$
DECLARE
    p text := current_setting('bigbrotr.prefix');
    s text;
BEGIN
    FOREACH s IN ARRAY ARRAY['admin', 'writer', 'refresher', 'reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = p || '_' || s) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I LOGIN', p || '_' || s);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
    -- A process that is frozen in the middle of a transaction must not hold its locks: the lead, or its jobs, for ever.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = p || '_writer' AND 'idle_in_transaction_session_timeout=5s' = ANY (rolconfig)) THEN
        BEGIN
            EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = %L', p || '_writer', '5s');
        -- Another migration in this cluster is setting it right now.
        EXCEPTION WHEN internal_error THEN NULL;
        END;
    END IF;
    -- From PostgreSQL 16 on, who made a role is its member and may still not become it.
    IF current_user <> p || '_admin' AND NOT pg_has_role(current_user, p || '_admin',
            CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
        EXECUTE format('GRANT %I TO CURRENT_USER', p || '_admin');
    END IF;
    IF NOT has_database_privilege(p || '_admin', current_database(), 'CREATE') THEN
        EXECUTE format('GRANT CREATE ON DATABASE %I TO %I', current_database(), p || '_admin');
    END IF;
    IF NOT has_schema_privilege(p || '_admin', 'public', 'CREATE') THEN
        EXECUTE format('GRANT USAGE, CREATE ON SCHEMA public TO %I', p || '_admin');
    END IF;
END $$";

const PASSWORD: &str = r"
DO $$ BEGIN
    EXECUTE format('ALTER ROLE %I PASSWORD %L', current_setting('bigbrotr.role'), current_setting('bigbrotr.password'));
END $$";

const BECOME_ADMIN: &str = r"
DO $$ BEGIN
    EXECUTE format('SET ROLE %I', current_setting('bigbrotr.prefix') || '_admin');
END $$";
