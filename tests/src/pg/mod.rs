//! Databases for tests: a clone of a migrated template each, in the private cluster of `tests/tools/pg.sh`.
//!
//! The template is named by the hash of everything the schema is made of and is made once, under an advisory
//! lock. Invariant: a test's database is its own; it is dropped on success, kept and named on failure.

mod bouncer;
mod cluster;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::tcp::authority;

pub use bouncer::{Bouncer, Generation};
pub use cluster::Cluster;

/// Prefix of the roles that `migrate` makes when none is configured.
pub const ROLE_PREFIX: &str = "bigbrotr_";

/// The advisory lock under which templates are made: "kit" in ASCII.
const TEMPLATE_LOCK: i64 = 0x006b_6974;

/// PostgreSQL cuts names at 63 bytes.
const NAME_BYTES_MAX: usize = 63;

/// As whom a test connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The cluster's superuser, as `BIGBROTR_TEST_PG` names it.
    Superuser,
    /// `bigbrotr_admin`.
    Admin,
    /// `bigbrotr_writer`: EXECUTE only.
    Writer,
    /// `bigbrotr_refresher`.
    Refresher,
    /// `bigbrotr_reader`.
    Reader,
}

impl Role {
    /// The roles `migrate` makes.
    pub const MADE: [Self; 4] = [Self::Admin, Self::Writer, Self::Refresher, Self::Reader];

    /// The user's name; `None` for the superuser, whom the URL names.
    pub fn user(self) -> Option<String> {
        let word = match self {
            Self::Superuser => return None,
            Self::Admin => "admin",
            Self::Writer => "writer",
            Self::Refresher => "refresher",
            Self::Reader => "reader",
        };
        Some(format!("{ROLE_PREFIX}{word}"))
    }
}

/// A database of this test's own.
#[derive(Debug)]
pub struct TestDb {
    /// Its name in the cluster.
    pub name: String,
    cluster: String,
}

impl TestDb {
    /// A clone of the template `label`, which `migrate` makes from an empty database when it is missing.
    ///
    /// `migrate` gets the superuser's URL of that database. `None` is a visible skip: no private cluster.
    ///
    /// # Panics
    /// When the cluster does not do as told, or `migrate` fails.
    pub async fn from_template<F, M>(label: &str, migrate: F) -> Option<Self>
    where
        F: FnOnce(String) -> M,
        M: Future<Output = anyhow::Result<()>>,
    {
        let cluster = cluster()?;
        let template = format!("template_{label}_{}", fingerprint());
        Box::pin(ensure_template(&cluster, &template, migrate)).await.expect("the template can be made");
        let source = format!("TEMPLATE \"{template}\" STRATEGY file_copy");
        Some(Self::create(cluster, &source).await)
    }

    /// An empty database: for tests of the migrations themselves.
    ///
    /// # Panics
    /// When the cluster does not do as told.
    pub async fn empty() -> Option<Self> {
        let cluster = cluster()?;
        Some(Self::create(cluster, "TEMPLATE template0").await)
    }

    /// An empty database in the cluster behind this superuser's URL: for benchmarks, whose cluster is durable.
    ///
    /// # Panics
    /// When the cluster does not do as told.
    pub async fn empty_in(cluster: &str) -> Self {
        Self::create(cluster.to_owned(), "TEMPLATE template0").await
    }

    async fn create(cluster: String, source: &str) -> Self {
        let name = database_name();
        let mut admin = PgConnection::connect(&cluster).await.expect("the private cluster answers");
        run(&mut admin, format!("CREATE DATABASE \"{name}\" {source}"))
            .await
            .expect("a database can be made");
        Self { name, cluster }
    }

    /// The URL of this database for a role, straight to PostgreSQL. The private cluster asks roles for no password.
    pub fn url(&self, role: Role) -> String {
        url_at(&self.cluster, &self.address().to_string(), &self.name, role)
    }

    /// The same through the server's socket file, which is reached from another namespace of network; a visible skip
    /// where there is none that we may use.
    pub async fn socket_url(&self, role: Role) -> Option<String> {
        let mut admin = self.connect(Role::Superuser).await;
        let folder: String =
            sqlx::query_scalar("SELECT split_part(current_setting('unix_socket_directories'), ',', 1)")
                .fetch_one(&mut admin)
                .await
                .unwrap_or_default();
        let port = self.address().port();
        let there = Path::new(&folder).join(format!(".s.PGSQL.{port}")).exists().then_some(());
        crate::require(there, "the socket file of the private PostgreSQL")?;
        Some(format!("{}?host={folder}&port={port}", self.url(role)))
    }

    /// Where the cluster listens.
    ///
    /// # Panics
    /// When `BIGBROTR_TEST_PG` does not name an IP address and a port.
    pub fn address(&self) -> SocketAddr {
        let authority = authority(&self.cluster).expect("the cluster's URL has host and port");
        authority.parse().expect("the private cluster listens on a loopback address")
    }

    /// A connection of its own.
    ///
    /// # Panics
    /// When PostgreSQL refuses.
    pub async fn connect(&self, role: Role) -> PgConnection {
        PgConnection::connect(&self.url(role)).await.expect("the test's own database answers")
    }

    /// Runs SQL, several statements if need be, as the superuser.
    ///
    /// # Panics
    /// When PostgreSQL refuses.
    pub async fn execute(&self, sql: &str) {
        run(&mut self.connect(Role::Superuser).await, sql.to_owned())
            .await
            .expect("the statements are right");
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a failed test says where its data lie")]
            {
                eprintln!("kept for inspection: {}", self.url(Role::Superuser));
            }
            return;
        }
        let (cluster, name) = (self.cluster.clone(), self.name.clone());
        // A thread of its own: dropping happens inside the test's runtime, which cannot wait for another.
        let dropper = std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut admin = PgConnection::connect(&cluster).await?;
                run(&mut admin, format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await
            })
        });
        dropper.join().expect("dropping does not panic").expect("the test's database can be dropped");
    }
}

/// The cluster's admin URL, or a visible skip.
fn cluster() -> Option<String> {
    crate::require(
        crate::env::var(crate::env::TEST_PG),
        "a private PostgreSQL (run ./test, or tests/tools/pg.sh start)",
    )
}

/// The superuser keeps the credentials of the cluster's URL; roles come with a name only.
fn url_at(cluster: &str, authority: &str, database: &str, role: Role) -> String {
    let superuser = cluster.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
    let user = role.user().or_else(|| superuser.map(|(credentials, _)| credentials.to_owned()));
    format!("postgres://{}@{authority}/{database}", user.unwrap_or_else(|| "postgres".into()))
}

async fn ensure_template<F, M>(cluster: &str, template: &str, migrate: F) -> anyhow::Result<()>
where
    F: FnOnce(String) -> M,
    M: Future<Output = anyhow::Result<()>>,
{
    let mut admin = PgConnection::connect(cluster).await.context("connecting to the private cluster")?;
    if is_made(&mut admin, template).await? {
        return Ok(());
    }
    sqlx::query("SELECT pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut admin).await?;
    // Another test may have made it while this one waited. The lock ends with the connection.
    if is_made(&mut admin, template).await? {
        return Ok(());
    }
    let unfinished = format!("{template}_unfinished");
    run(&mut admin, format!("DROP DATABASE IF EXISTS \"{unfinished}\" WITH (FORCE)")).await?;
    run(&mut admin, format!("CREATE DATABASE \"{unfinished}\" TEMPLATE template0")).await?;
    let address = authority(cluster).context("the cluster's URL has no host and port")?;
    migrate(url_at(cluster, &address, &unfinished, Role::Superuser))
        .await
        .context("migrating the template")?;
    // Connections the migration left behind may take a moment to end; a database in use cannot be renamed.
    run(&mut admin, format!("ALTER DATABASE \"{unfinished}\" WITH ALLOW_CONNECTIONS false")).await?;
    let left = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = $1";
    sqlx::query(left).bind(&unfinished).execute(&mut admin).await?;
    run(&mut admin, format!("ALTER DATABASE \"{unfinished}\" WITH IS_TEMPLATE true")).await?;
    run(&mut admin, format!("ALTER DATABASE \"{unfinished}\" RENAME TO \"{template}\"")).await
}

async fn is_made(admin: &mut PgConnection, template: &str) -> anyhow::Result<bool> {
    let known = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    Ok(sqlx::query_scalar(known).bind(template).fetch_one(admin).await?)
}

async fn run(connection: &mut PgConnection, sql: String) -> anyhow::Result<()> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    Ok(())
}

/// Unique, and begins with the test's name, which is the thread's.
fn database_name() -> String {
    let thread = std::thread::current();
    let test =
        thread.name().unwrap_or("test").replace("::", "_").replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let unique = shared::clock::random_hex(6);
    let kept = test.len().min(NAME_BYTES_MAX - unique.len() - 1);
    format!("{}_{unique}", &test[test.len() - kept..])
}

/// A hash of everything the schema is made of: the migrations, the queue's SQL, the pinned apalis-postgres.
fn fingerprint() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = sql_files(&root.join("migrations"));
    files.extend(sql_files(&root.join("shared/src")));
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(std::fs::read(&file).unwrap_or_default());
    }
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap_or_default();
    let apalis = lock.split("[[package]]").find(|package| package.contains("\"apalis-postgres\"\nversion"));
    hash.update(apalis.unwrap_or_default());
    hex::encode(&hash.finalize()[..6])
}

/// Every `*.sql` below a folder, in order of its path.
fn sql_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let below = |path: PathBuf| if path.is_dir() { sql_files(&path) } else { vec![path] };
    paths
        .into_iter()
        .flat_map(below)
        .filter(|path| path.extension().is_some_and(|end| end == "sql"))
        .collect()
}
