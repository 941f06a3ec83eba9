//! What can go wrong with the database, told apart by what one can do about it.

/// A failure of ours, never of a relay.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The URL is not a PostgreSQL URL.
    #[error("the database URL is not of the form postgres://user:password@host:port/name")]
    Url,
    /// The server cannot be reached, or the connection broke.
    #[error("the database is not reachable: {0}")]
    Unavailable(String),
    /// The server refused the user or the password.
    #[error("the database refused the login: {0} (check user and password in the URL)")]
    Login(String),
    /// The named database does not exist.
    #[error("the database does not exist: {0}")]
    NoDatabase(String),
    /// The server is older than we support.
    #[error("PostgreSQL {found} is too old: version {wanted} or newer is needed")]
    Version {
        /// Version of the server.
        found: String,
        /// Oldest version that works.
        wanted: u32,
    },
    /// The schema is missing or older than this program.
    #[error("the database has no BigBrotr schema, or an older one: run `bigbrotr migrate` first ({0})")]
    Schema(String),
    /// A statement ran into its time limit.
    #[error("a statement took longer than {seconds} s")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// The role may not do this.
    #[error("the database role may not do this: {0}")]
    Forbidden(String),
    /// The server refused values as such: sending them again cannot help.
    #[error("the database refused a value ({code}): {message}")]
    Data {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: String,
    },
    /// Anything else the server said.
    #[error("the database reported {code}: {message}")]
    Server {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: String,
    },
    /// A row does not have the shape this program expects.
    #[error("column {column} cannot be read: {problem}")]
    Decode {
        /// Which column.
        column: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A stored value does not validate any more: somebody changed it by hand, or the disk did.
    #[error("table {table}, column {column}, row {row}: {problem}")]
    Corrupt {
        /// Table of the row.
        table: &'static str,
        /// Column that does not validate.
        column: &'static str,
        /// The row's key.
        row: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A migration failed.
    #[error("migration failed: {0}")]
    Migrate(String),
}

impl DbError {
    /// Whether the same values may succeed later.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Timeout { .. } | Self::Server { .. } | Self::Login(_))
    }

    /// Whether the server refused the values themselves, so that bisecting finds the one at fault.
    pub const fn is_data(&self) -> bool {
        matches!(self, Self::Data { .. })
    }

    /// Whether what the statement went by has changed meanwhile: looked at again, it may succeed.
    pub fn is_outdated(&self) -> bool {
        matches!(self, Self::Server { code, .. } if code == "40001")
    }

    /// Whether two waited for each other, and this one gave way: it may be done again.
    pub fn is_deadlock(&self) -> bool {
        matches!(self, Self::Server { code, .. } if code == "40P01")
    }

    /// Whether a view has other columns than what would replace it.
    pub fn is_other_columns(&self) -> bool {
        matches!(self, Self::Server { code, .. } if code == "42P16")
    }

    /// Whether a lock was not to be had: somebody else does this right now.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Server { code, .. } if code == "55P03")
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = &error else {
            return Self::Unavailable(error.to_string());
        };
        let code = database.code().unwrap_or_default().into_owned();
        let message = database.message().to_owned();
        match code.as_str() {
            "28P01" | "28000" => Self::Login(message),
            // PgBouncer reports a failed login under its own class.
            "08P01" if message.contains("authentication") || message.contains("password") => {
                Self::Login(message)
            }
            "3D000" => Self::NoDatabase(message),
            "42501" => Self::Forbidden(message),
            "42883" | "42P01" | "42703" | "3F000" => Self::Schema(message),
            "25006" => Self::Server {
                code,
                message: format!("{message} (a standby only reads: name the server it follows)"),
            },
            "57P01" | "57P02" | "57P03" | "53300" => Self::Unavailable(message),
            // A row that raced the making of its partition: the same row finds it the next time.
            "23514" if message.contains("partition constraint") => Self::Server { code, message },
            code if code.starts_with("08") => Self::Unavailable(message),
            code if code.starts_with("22") || code.starts_with("54") || code.starts_with("23") => {
                Self::Data { code: code.to_owned(), message }
            }
            _ => Self::Server { code, message },
        }
    }
}
