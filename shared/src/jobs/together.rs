//! Questions of many jobs that share one call to the database.
//!
//! A look at a relay asks the database three things; each call costs both sides more than what it does for one
//! relay. What is asked within a few milliseconds goes together: a job of a second does not notice. Invariant: an
//! answer is that of the question's own row, and a value that the database refuses costs nobody but its own job.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::JobError;
use crate::db::{CandidateRow, Db, DbError, HostAsked, HostPermit, MonitorResult, ValidateResult};
use crate::models::{Fence, RelayUrl};

/// How long the first question waits for others.
const PACE: Duration = Duration::from_millis(15);
/// Questions per call.
const BATCH: usize = 128;

/// What jobs of one process ask together.
#[derive(Clone)]
pub struct Calls {
    candidates: Together<RelayUrl, Option<CandidateRow>>,
    permits: Together<HostAsked, HostPermit>,
    validated: Together<ValidateResult, bool>,
    monitored: Together<MonitorResult, bool>,
}

impl Calls {
    /// Through this pool, for looks from this vantage.
    pub fn new(db: &Db, vantage: &str) -> Self {
        let (candidates, permits, validated, monitored) = (db.clone(), db.clone(), db.clone(), db.clone());
        let vantage: Arc<str> = vantage.into();
        Self {
            candidates: Together::new(move |urls| {
                let db = candidates.clone();
                Box::pin(async move { db.candidate_get(&urls).await })
            }),
            permits: Together::new(move |asked| {
                let db = permits.clone();
                Box::pin(async move { db.host_permits(&asked).await })
            }),
            validated: Together::new(move |results: Vec<ValidateResult>| {
                let db = validated.clone();
                Box::pin(async move { Ok(held(results.len(), &db.validate_finish(&results).await?)) })
            }),
            monitored: Together::new(move |results: Vec<MonitorResult>| {
                let (db, vantage) = (monitored.clone(), Arc::clone(&vantage));
                Box::pin(
                    async move { Ok(held(results.len(), &db.monitor_finish(&vantage, &results).await?)) },
                )
            }),
        }
    }

    pub(super) async fn candidate_get(&self, url: &RelayUrl) -> Result<Option<CandidateRow>, JobError> {
        self.candidates.ask(url.clone()).await
    }

    pub(super) async fn host_permit(
        &self,
        fence: &Fence,
        host: &str,
        address: IpAddr,
    ) -> Result<HostPermit, JobError> {
        self.permits.ask(HostAsked { fence: fence.clone(), host: host.to_owned(), address }).await
    }

    /// Whether the fence held.
    pub(super) async fn validate_finish(&self, result: ValidateResult) -> Result<bool, JobError> {
        self.validated.ask(result).await
    }

    /// Whether the fence held.
    pub(super) async fn monitor_finish(&self, result: MonitorResult) -> Result<bool, JobError> {
        self.monitored.ask(result).await
    }
}

/// Of so many, those whose position is not among the lost.
fn held(n: usize, lost: &[usize]) -> Vec<bool> {
    (0..n).map(|position| !lost.contains(&position)).collect()
}

type Answer<A> = Result<A, JobError>;
type Call<Q, A> = dyn Fn(Vec<Q>) -> BoxFuture<'static, Result<Vec<A>, DbError>> + Send + Sync;

/// Questions of one kind.
struct Together<Q, A> {
    shared: Arc<Shared<Q, A>>,
}

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<Q, A> {
    waiting: Mutex<Waiting<Q, A>>,
    call: Box<Call<Q, A>>,
    tasks: TaskTracker,
}

struct Waiting<Q, A> {
    questions: Vec<(Q, oneshot::Sender<Answer<A>>)>,
    /// Somebody will ask them.
    asked: bool,
}

impl<Q: Clone + Send + 'static, A: Send + 'static> Together<Q, A> {
    fn new(
        call: impl Fn(Vec<Q>) -> BoxFuture<'static, Result<Vec<A>, DbError>> + Send + Sync + 'static,
    ) -> Self {
        let waiting = Mutex::new(Waiting { questions: Vec::new(), asked: false });
        Self { shared: Arc::new(Shared { waiting, call: Box::new(call), tasks: TaskTracker::new() }) }
    }

    /// The answer, after at most a pace and a call. The call goes on when whoever asked has gone.
    async fn ask(&self, question: Q) -> Answer<A> {
        let (tell, told) = oneshot::channel();
        let first = {
            let mut waiting = self.shared.lock();
            waiting.questions.push((question, tell));
            !std::mem::replace(&mut waiting.asked, true)
        };
        if first {
            let turn = Turn { shared: Arc::clone(&self.shared), over: false };
            self.shared.tasks.spawn(turn.run());
        }
        told.await.unwrap_or_else(|_| {
            Err(JobError::Retry { why: "a call to the database ended without an answer".to_owned() })
        })
    }
}

impl<Q, A> Shared<Q, A> {
    fn lock(&self) -> MutexGuard<'_, Waiting<Q, A>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asking what waits, until nothing does.
struct Turn<Q, A> {
    shared: Arc<Shared<Q, A>>,
    over: bool,
}

impl<Q: Clone + Send + 'static, A: Send + 'static> Turn<Q, A> {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(PACE).await;
            let batch = {
                let mut waiting = self.shared.lock();
                if waiting.questions.is_empty() {
                    waiting.asked = false;
                    self.over = true;
                    return;
                }
                let n = waiting.questions.len().min(BATCH);
                waiting.questions.drain(..n).collect::<Vec<_>>()
            };
            let (questions, tellers): (Vec<Q>, Vec<_>) = batch.into_iter().unzip();
            for (tell, answer) in tellers.into_iter().zip(self.answers(questions).await) {
                // Whoever asked may be gone.
                drop(tell.send(answer));
            }
        }
    }

    /// One answer per question, in their order.
    async fn answers(&self, questions: Vec<Q>) -> Vec<Answer<A>> {
        let n = questions.len();
        match (self.shared.call)(questions.clone()).await {
            Ok(answers) if answers.len() == n => answers.into_iter().map(Ok).collect(),
            Ok(answers) => refuse(n, &format!("{} answers to {n} questions", answers.len())),
            // One of the values is at fault: each stands for itself.
            Err(error) if error.is_data() && n > 1 => {
                let mut answers = Vec::with_capacity(n);
                for question in questions {
                    let answer = (self.shared.call)(vec![question]).await;
                    answers.push(answer.map_err(JobError::from).and_then(|mut rows| {
                        rows.pop().ok_or(JobError::Retry { why: "no answer".to_owned() })
                    }));
                }
                answers
            }
            Err(error) => refuse(n, &error.to_string()),
        }
    }
}

fn refuse<A>(n: usize, why: &str) -> Vec<Answer<A>> {
    (0..n).map(|_| Err(JobError::Retry { why: why.to_owned() })).collect()
}

impl<Q, A> Drop for Turn<Q, A> {
    fn drop(&mut self) {
        if !self.over {
            // A panic in a call: who waits hears of it, and the next question is asked by somebody else.
            let mut waiting = self.shared.lock();
            waiting.asked = false;
            waiting.questions.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn refused() -> DbError {
        DbError::Data { code: "22021".to_owned(), message: "a poisoned value".to_owned() }
    }

    /// Doubles numbers; refuses 13 and panics over 99. Also how many calls there were.
    fn doubler() -> (Together<u32, u32>, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let together = Together::new(move |numbers: Vec<u32>| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                assert!(!numbers.contains(&99), "as asked");
                if numbers.contains(&13) {
                    Err(refused())
                } else {
                    Ok(numbers.iter().map(|n| n * 2).collect())
                }
            })
        });
        (together, calls)
    }

    async fn ask_all(together: &Together<u32, u32>, numbers: &[u32]) -> Vec<Option<u32>> {
        let asked = numbers.iter().map(|n| together.ask(*n));
        futures_util::future::join_all(asked).await.into_iter().map(Result::ok).collect()
    }

    #[tokio::test]
    async fn questions_at_once_are_one_call_and_everybody_hears_their_own_answer() {
        let (together, calls) = doubler();
        assert_eq!(ask_all(&together, &[1, 2, 3]).await, [Some(2), Some(4), Some(6)]);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(ask_all(&together, &[4]).await, [Some(8)], "and the next one is asked again");
        let many: Vec<u32> = (1_000..1_300).collect();
        assert!(ask_all(&together, &many).await.iter().zip(&many).all(|(a, n)| *a == Some(n * 2)));
        assert_eq!(calls.load(Ordering::Relaxed), 5, "300 are three calls");
    }

    #[tokio::test]
    async fn a_value_that_is_refused_costs_its_own_question_only() {
        let (together, calls) = doubler();
        assert_eq!(ask_all(&together, &[1, 13, 3]).await, [Some(2), None, Some(6)]);
        assert_eq!(calls.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn a_call_that_panics_keeps_nobody_waiting() {
        let (together, _) = doubler();
        assert_eq!(ask_all(&together, &[1, 99]).await, [None, None]);
        assert_eq!(ask_all(&together, &[5]).await, [Some(10)]);
    }

    #[tokio::test]
    async fn who_asked_first_may_leave() {
        let (together, _) = doubler();
        let left = tokio::time::timeout(Duration::from_millis(1), together.ask(1)).await;
        assert!(left.is_err());
        assert_eq!(ask_all(&together, &[2]).await, [Some(4)]);
    }
}
