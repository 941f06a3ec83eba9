//! Our `apalis` backend: tasks arrive over a channel from the exchange, and results leave over one to it.
//!
//! It never fails and never talks to the database: a worker cannot die of a hiccup.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use apalis::prelude::*;
use apalis_core::backend::{BackendConfig, finalize::Ephemeral};
use apalis_core::error::BoxDynError;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::ack::Ended;
use super::held::Holding;
use super::lanes::{Serving, Slot};
use crate::db::Claimed;
use crate::jobs::Ending;

/// A claimed attempt on its way through apalis. The slot is free when the last clone is gone.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) claimed: Claimed,
    /// When it was claimed, milliseconds of [`crate::clock::boot_ms`].
    pub(super) claimed_ms: u64,
    pub(super) slot: Arc<Slot>,
    /// Notes the attempt as running here, and says when it is to end before its time.
    pub(super) holding: Arc<Holding>,
}

/// Receiving end of one queue's channel; shared, so that a restarted worker goes on where it was.
pub(super) type Tickets = Arc<Mutex<mpsc::Receiver<Ticket>>>;

/// The backend of one queue.
pub(super) struct QueueBackend {
    tickets: Tickets,
    ended: mpsc::Sender<Ended>,
    _serving: Serving,
}

impl QueueBackend {
    pub(super) const fn new(tickets: Tickets, ended: mpsc::Sender<Ended>, serving: Serving) -> Self {
        Self { tickets, ended, _serving: serving }
    }
}

impl Backend for QueueBackend {
    type Task = Task<Ticket>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.poll_recv(cx).map(|ticket| {
            ticket.map(|ticket| {
                let attempt = usize::try_from(ticket.claimed.attempt).unwrap_or(1);
                Ok(TaskBuilder::new(ticket).attempt(attempt).build())
            })
        })
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for QueueBackend {
    type Args = Ticket;
    type Id = ();
    type Kind = Ephemeral;
    type Config = ();
    type Layer = AckLayer;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> AckLayer {
        AckLayer { ended: self.ended.clone() }
    }
}

/// Outermost layer: whatever becomes of an attempt, panic included, reaches the exchange.
#[derive(Debug, Clone)]
pub(super) struct AckLayer {
    ended: mpsc::Sender<Ended>,
}

impl<S> Layer<S> for AckLayer {
    type Service = AckService<S>;

    fn layer(&self, inner: S) -> AckService<S> {
        AckService { inner, ended: self.ended.clone() }
    }
}

/// See [`AckLayer`].
#[derive(Debug, Clone)]
pub(super) struct AckService<S> {
    inner: S,
    ended: mpsc::Sender<Ended>,
}

impl<S> Service<Task<Ticket>> for AckService<S>
where
    S: Service<Task<Ticket>, Response = Ending>,
    S::Future: Send + 'static,
    S::Error: Into<BoxDynError>,
{
    type Response = ();
    type Error = BoxDynError;
    type Future = BoxFuture<'static, Result<(), BoxDynError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxDynError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, task: Task<Ticket>) -> Self::Future {
        let ticket = task.args.clone();
        let work = self.inner.call(task);
        let ended = self.ended.clone();
        async move {
            // An error here is a panic that the layer below caught: our fault, worth another attempt.
            let ending = work.await.unwrap_or_else(|error| Ending::retry(&error.into().to_string()));
            // The exchange outlives every worker; if it is gone, rescue finds the job.
            drop(ended.send(Ended::new(ticket, ending)).await);
            Ok(())
        }
        .boxed()
    }
}
