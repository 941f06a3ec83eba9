//! Asking the fleet before a machine of somebody's is dialled, between resolving and dialling.

use std::net::IpAddr;
use std::time::Duration;

use super::{Attempt, Ctx, JobError, lost};
use crate::db::Db;
use crate::net::Target;

impl Ctx {
    /// Asks the fleet for a start on the machine behind a resolved name, and waits for it if that is short.
    /// Overlays have no address: the claim has spaced them by name.
    ///
    /// # Errors
    /// A snooze when the machine has no place soon; a cancellation when the lease was lost.
    pub(super) async fn permit(&self, attempt: &Attempt, target: &Target) -> Result<(), JobError> {
        let Some(address) = target.address() else { return Ok(()) };
        match self.place(attempt, target.url().host(), address).await? {
            None => Ok(()),
            Some(wait) if attempt.stop.is_cancelled() => Err(JobError::snooze(wait, "stopped")),
            Some(wait) => Err(JobError::snooze(wait, format!("{address} has no place for another job yet"))),
        }
    }

    /// The same for a job that visits many machines: how long this one has no place, if it has none soon. No wait at
    /// all when the process stops.
    ///
    /// # Errors
    /// A cancellation when the lease was lost.
    pub(super) async fn place(
        &self,
        attempt: &Attempt,
        host: &str,
        address: IpAddr,
    ) -> Result<Option<Duration>, JobError> {
        let permit = self.calls.host_permit(&attempt.fence, host, address).await?;
        if !permit.held {
            return Err(lost());
        }
        if permit.wait > Db::HOST_WAIT {
            return Ok(Some(permit.wait));
        }
        tokio::select! {
            () = attempt.stop.cancelled() => Ok(Some(Duration::ZERO)),
            () = tokio::time::sleep(permit.wait) => Ok(None),
        }
    }
}
