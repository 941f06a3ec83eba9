//! What the fleet shares: limits, permits of hosts, breakers of networks.

use std::net::IpAddr;
use std::time::Duration;

use sqlx::postgres::PgRow;

use super::observe::{fences, position};
use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::models::{Fence, Network};

/// How the whole fleet treats the networks and the machines on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetLimits {
    /// Per network: jobs at once, and bytes per UTC day beyond which syncing rests (`None`: no limit).
    pub networks: Vec<(Network, u32, Option<u64>)>,
    /// Jobs at once on one host.
    pub host_jobs: u32,
    /// Between two starts on one host.
    pub host_spacing: Duration,
    /// Jobs at once in one address block.
    pub block_jobs: u32,
    /// Between two starts in one address block.
    pub block_spacing: Duration,
    /// Vantages that must agree that a relay is down; `None` leaves it as it is.
    pub vantages_for_down: Option<u32>,
}

/// A start that is asked for.
#[derive(Debug, Clone)]
pub struct HostAsked {
    /// By which job.
    pub fence: Fence,
    /// The name.
    pub host: String,
    /// The address it has turned out to have.
    pub address: IpAddr,
}

/// One gauge of the fleet, as the database words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GaugeLine {
    /// Name of the metric, without its prefix.
    pub gauge: String,
    /// Job kind, or nothing.
    pub kind: String,
    /// Network, `local`, or nothing.
    pub network: String,
    /// State, grade or the like, or nothing.
    pub word: String,
    /// What it shows.
    pub value: i64,
}

/// The answer to [`Db::host_permit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPermit {
    /// Whether the job is still ours.
    pub held: bool,
    /// Up to [`Db::HOST_WAIT`]: a start is reserved then. Longer: the job should come back then.
    pub wait: Duration,
}

fn gauge_line(row: &PgRow) -> Result<GaugeLine, DbError> {
    Ok(GaugeLine {
        gauge: get(row, "gauge")?,
        kind: get(row, "kind")?,
        network: get(row, "network")?,
        word: get(row, "word")?,
        value: get(row, "value")?,
    })
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

fn waiting(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::ZERO)
}

impl Db {
    /// Longest wait for a host that is worth a slot.
    pub const HOST_WAIT: Duration = Duration::from_secs(2);

    /// Asks for a start on the address a host name has turned out to have.
    pub async fn host_permit(
        &self,
        fence: &Fence,
        host: &str,
        address: IpAddr,
    ) -> Result<HostPermit, DbError> {
        let asked = HostAsked { fence: fence.clone(), host: host.to_owned(), address };
        let missing = || DbError::Decode { column: "o", problem: "no answer".to_owned() };
        self.host_permits(&[asked]).await?.pop().ok_or_else(missing)
    }

    /// Asks for starts on the addresses host names have turned out to have, one answer each.
    pub async fn host_permits(&self, asked: &[HostAsked]) -> Result<Vec<HostPermit>, DbError> {
        let (jobs, workers, attempts) = fences(asked.iter().map(|a| &a.fence));
        let query = sqlx::query("SELECT o, held, wait_s FROM host_permits($1, $2, $3, $4, $5)")
            .bind(jobs)
            .bind(workers)
            .bind(attempts)
            .bind(asked.iter().map(|a| a.host.clone()).collect::<Vec<_>>())
            .bind(asked.iter().map(|a| a.address.to_string()).collect::<Vec<_>>());
        let mut permits = vec![HostPermit { held: false, wait: Duration::ZERO }; asked.len()];
        for row in &self.all(query).await? {
            if let Some(place) = permits.get_mut(position(row)?) {
                *place = HostPermit { held: get(row, "held")?, wait: waiting(get(row, "wait_s")?) };
            }
        }
        Ok(permits)
    }

    /// Opens a network's breaker for one vantage on a failure whose attempt began `age` ago; returns for how long.
    /// Zero: it began before the breaker was last half open or closed, and says nothing new.
    pub async fn breaker_trip(
        &self,
        network: Network,
        vantage: &str,
        worker: &str,
        why: &str,
        age: Duration,
    ) -> Result<Duration, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT breaker_trip($1, $2, $3, $4, p_age_s => $5) AS s")
                    .bind(network.as_str())
                    .bind(vantage)
                    .bind(worker)
                    .bind(why)
                    .bind(age.as_secs_f64()),
            )
            .await?;
        Ok(waiting(get(&row, "s")?))
    }

    /// Closes a breaker; false when it was closed.
    pub async fn breaker_close(&self, network: Network, vantage: &str) -> Result<bool, DbError> {
        let row = self
            .one(sqlx::query("SELECT breaker_close($1, $2) AS open").bind(network.as_str()).bind(vantage))
            .await?;
        get(&row, "open")
    }

    /// Publishes the limits of the fleet; returns how many changed.
    pub async fn fleet_limits_set(&self, limits: &FleetLimits) -> Result<u64, DbError> {
        let networks = &limits.networks;
        let row = self
            .one(
                sqlx::query("SELECT fleet_limits_set($1, $2, $3, $4, $5, $6, $7, $8) AS n")
                    .bind(
                        networks.iter().map(|(network, ..)| network.as_str().to_owned()).collect::<Vec<_>>(),
                    )
                    .bind(
                        networks
                            .iter()
                            .map(|(_, n, _)| i32::try_from(*n).unwrap_or(i32::MAX))
                            .collect::<Vec<_>>(),
                    )
                    .bind(
                        networks
                            .iter()
                            .map(|(.., bytes)| bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
                            .collect::<Vec<_>>(),
                    )
                    .bind(i32::try_from(limits.host_jobs).unwrap_or(i32::MAX))
                    .bind(millis(limits.host_spacing))
                    .bind(i32::try_from(limits.block_jobs).unwrap_or(i32::MAX))
                    .bind(millis(limits.block_spacing))
                    .bind(limits.vantages_for_down.map(|n| i32::try_from(n).unwrap_or(i32::MAX))),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Gauges of queues, workers, networks and views: cheap enough for every ten seconds.
    pub async fn fleet_gauges(&self) -> Result<Vec<GaugeLine>, DbError> {
        let sql = "SELECT gauge, kind, network, word, value FROM fleet_gauges()";
        self.all(sqlx::query(sql)).await?.iter().map(gauge_line).collect()
    }

    /// Gauges of relays and the archive: for once a minute.
    pub async fn archive_gauges(&self) -> Result<Vec<GaugeLine>, DbError> {
        let sql = "SELECT gauge, kind, network, word, value FROM archive_gauges()";
        self.all(sqlx::query(sql)).await?.iter().map(gauge_line).collect()
    }

    /// Forgets hosts on which nothing started for a day, and what is older still; returns how many hosts.
    pub async fn host_retire(&self) -> Result<u64, DbError> {
        small_count(&self.one(sqlx::query("SELECT host_retire() AS n")).await?, "n")
    }
}
