//! Hearing of new jobs, where a direct connection is offered: shortens the wait for the next poll to nothing.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::run::Shared;
use crate::db::{DbError, JobListener};

/// Between tries while the direct connection is away.
const RETRY: Duration = Duration::from_secs(5);

/// Listens until told to stop; whoever asks the queue polls all the same.
pub(super) async fn run(shared: Shared, url: String, stop: CancellationToken) {
    let mut told = false;
    while !stop.is_cancelled() {
        let error = tokio::select! {
            () = stop.cancelled() => return,
            Err(error) = listen(&shared, &url) => error,
        };
        shared.set_listening(false);
        if told {
            tracing::debug!(error = %error, "not hearing of new jobs; polling goes on");
        } else {
            tracing::warn!(error = %error, "not hearing of new jobs over the direct connection; polling goes on");
            told = true;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn listen(shared: &Shared, url: &str) -> Result<std::convert::Infallible, DbError> {
    let mut listener = JobListener::connect(url).await?;
    tracing::info!("hearing of new jobs over the direct connection");
    shared.set_listening(true);
    loop {
        listener.recv().await?;
        shared.wake.notify_one();
    }
}
