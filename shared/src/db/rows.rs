//! Reading columns out of rows, with an error that names the column.

use sqlx::postgres::{PgRow, Postgres};
use sqlx::{Decode, Row, Type};

use super::DbError;

/// One column of one row.
pub(super) fn get<'r, T>(row: &'r PgRow, column: &'static str) -> Result<T, DbError>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get(column).map_err(|error| DbError::Decode { column, problem: error.to_string() })
}

/// A non-negative count, which PostgreSQL has only as a signed number.
pub(super) fn count(row: &PgRow, column: &'static str) -> Result<u64, DbError> {
    let value: i64 = get(row, column)?;
    u64::try_from(value).map_err(|_| DbError::Decode { column, problem: format!("{value} is negative") })
}

/// A count that a function returns as `integer`.
pub(super) fn small_count(row: &PgRow, column: &'static str) -> Result<u64, DbError> {
    let value: i32 = get(row, column)?;
    u64::try_from(value).map_err(|_| DbError::Decode { column, problem: format!("{value} is negative") })
}

/// A word of a closed set, or the row's table, column and key in the error.
pub(super) fn word<T: std::str::FromStr>(
    text: &str,
    table: &'static str,
    column: &'static str,
    row: impl FnOnce() -> String,
) -> Result<T, DbError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| DbError::Corrupt {
        table,
        column,
        row: row(),
        problem: error.to_string(),
    })
}
