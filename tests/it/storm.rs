//! Everybody who writes to the archive or takes from it, at once: nothing is left without what it belongs to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use shared::db::{Db, DbError, EventRow, Fate, Found, ImportedObservation, Pace, ReconcileBatch, SetLine};
use shared::models::{Event, EventId, Fence, JobKind, RelayUrl, Retention, Target, Tombstone, tombstones};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::orphans::{known, store, url};
use super::retention::{archive, retire};
use super::support::{claim_one, handle, migrated, value};

const DAY_S: i64 = 86_400;
/// Relays that are written for.
const RELAYS: usize = 4;

/// Events over a hundred days, next year's and an absurd one among them; some expire while the storm lasts, some never.
fn pool() -> Vec<Event> {
    let now = shared::clock::unix_now();
    let mut events = Factory::new(64).over(100 * DAY_S).events(300);
    events.extend(Factory::new(65).ending_at(now + 300 * DAY_S).over(200 * DAY_S).events(40));
    events.extend(Factory::new(66).ending_at(8_000_000_000).over(DAY_S).events(5));
    let short = Factory::new(68);
    events.extend((0..160).map(|i| {
        let at = i64::try_from(i).unwrap();
        let expires = if i % 2 == 0 { 9_999_999_999 } else { now + at / 20 };
        let tags = vec![vec!["expiration".to_owned(), expires.to_string()]];
        short.sign(i, 1, tags, "soon gone", now - 40 * at)
    }));
    events.iter().map(|event| Event::parse(&event.as_json()).unwrap()).collect()
}

/// Numbers without much meaning, the same at every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    /// Some events that lie together.
    fn page(&mut self, pool: &[Event]) -> Vec<Event> {
        let from = self.roll(pool.len());
        pool.iter().skip(from).take(1 + self.roll(60)).cloned().collect()
    }
}

/// Whether doing it again may help: a lock, a deadlock, what came together.
fn passes(error: &DbError) -> bool {
    matches!(error, DbError::Server { code, .. } if ["55P03", "40P01", "40001", "23514"].contains(&code.as_str()))
}

/// What somebody did, as often as it went well; what may go well the next time is none.
#[derive(Debug, Default)]
struct Done(AtomicU64);

impl Done {
    fn add<T>(&self, done: Result<T, DbError>, many: impl FnOnce(T) -> u64) {
        match done {
            Ok(done) => drop(self.0.fetch_add(many(done), Ordering::Relaxed)),
            Err(error) => assert!(passes(&error), "{error}"),
        }
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What each of them did.
#[derive(Debug, Default)]
struct Deeds {
    stored: Done,
    claimed: Done,
    imported: Done,
    mined: Done,
    lightened: Done,
    expired: Done,
    laid: Done,
    reviewed: Done,
    retired: Done,
    other: Done,
}

impl Deeds {
    /// Whether it was a storm.
    fn are_enough(&self) -> bool {
        let some = [
            &self.claimed,
            &self.imported,
            &self.mined,
            &self.lightened,
            &self.expired,
            &self.laid,
            &self.reviewed,
        ];
        self.stored.get() > 500 && self.retired.get() > 100 && some.iter().all(|done| done.get() > 5)
    }
}

struct Storm {
    test: TestDb,
    db: Db,
    pool: Vec<Event>,
    /// Proofs of a sync job for each relay.
    fences: Vec<Fence>,
    deeds: Deeds,
    over: AtomicBool,
}

impl Storm {
    fn rages(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// A sync job that reads pages.
    async fn writer(&self, n: usize) {
        let mut dice = Dice(n as u64 + 1);
        while self.rages() {
            let page = dice.page(&self.pool);
            let done = store(&self.db, &self.fences[n], relay_id(n), &page, None).await;
            self.deeds.stored.add(done, |done| {
                assert!(done.held);
                done.observations
            });
        }
    }

    /// One that compares: what a relay has, what it has no more, what it lists and does not serve.
    async fn reconciler(&self, seed: u64) {
        let mut dice = Dice(seed);
        while self.rages() {
            let n = dice.roll(RELAYS);
            let named = |page: &[Event]| -> Vec<(EventId, i64)> {
                page.iter().map(|event| (event.id(), event.created_at())).collect()
            };
            let (claimed, gone) = (named(&dice.page(&self.pool)), named(&dice.page(&self.pool)));
            let batch = ReconcileBatch {
                fence: &self.fences[n],
                relay_id: relay_id(n),
                at: shared::clock::unix_now(),
                claimed: if dice.roll(3) > 0 { &claimed } else { &[] },
                gone: &gone,
                unserved: &[EventId([u8::try_from(dice.roll(200)).unwrap(); 32])],
                coverage: None,
            };
            self.deeds.claimed.add(self.db.reconcile_store(&batch).await, |new| new.unwrap());
        }
    }

    async fn importer(&self) {
        let mut dice = Dice(22);
        while self.rages() {
            let page = dice.page(&self.pool);
            let Ok(known) = known(&self.db, &page).await else { continue };
            let new: Vec<EventRow> = page
                .iter()
                .zip(known)
                .filter(|(_, known)| !known)
                .map(|(event, _)| EventRow::from(event.clone()))
                .collect();
            let observed: Vec<ImportedObservation> = page
                .iter()
                .map(|event| ImportedObservation {
                    id: event.id(),
                    created_at: event.created_at(),
                    relay: url(dice.roll(RELAYS + 2)),
                    seen_at: Some(5),
                    claimed: dice.roll(2) == 0,
                })
                .collect();
            let done = self.db.event_import(&new, &observed, false, shared::clock::unix_now()).await;
            self.deeds.imported.add(done, |done| done.observations);
        }
    }

    /// Mines what is not mined yet, and has the archive be lightweight now and then.
    async fn miner(&self, fence: &Fence) {
        let mut admin = self.test.connect(Role::Superuser).await;
        let mut dice = Dice(23);
        while self.rages() {
            match dice.roll(4) {
                0 => {
                    let mode = sqlx::query("SELECT archive_mode_set(false, 'storm', '')");
                    self.deeds.other.add(mode.execute(&mut admin).await.map_err(DbError::from), |_| 1);
                }
                1 => {
                    let mode = sqlx::query("SELECT archive_mode_set(true, 'storm', '')");
                    let mode = mode.execute(&mut admin).await.map_err(DbError::from);
                    let light = mode.is_ok();
                    self.deeds.other.add(mode, |_| 1);
                    if !light {
                        continue;
                    }
                    let done = sqlx::query_scalar::<_, i32>("SELECT stripped FROM archive_lighten(60)");
                    let done = done.fetch_one(&mut admin).await.map_err(DbError::from);
                    self.deeds.lightened.add(done, |n| u64::try_from(n).unwrap());
                }
                _ => {
                    let Ok(taken) = self.db.discover_take(40).await else { continue };
                    let mined: Vec<i64> = taken.iter().map(|event| event.key).collect();
                    let found =
                        Found { mined: &mined, per_host: 9, per_site: 9, per_hoster: 9, ..Found::default() };
                    let done = self.db.discover_store(fence, &found).await;
                    self.deeds.mined.add(done, |held| held.map(|_| mined.len() as u64).unwrap());
                }
            }
        }
    }

    /// What authors ask for: an event, an address, all up to a time; and its round, whatever its age.
    async fn asker(&self) {
        let mut admin = self.test.connect(Role::Superuser).await;
        let mut dice = Dice(24);
        while self.rages() {
            let event = &self.pool[dice.roll(self.pool.len())];
            let d: Option<[u8; 32]> = event.d_tag().map(|d| Sha256::digest(d.as_bytes()).into());
            let target = match (dice.roll(8), d) {
                (0, _) => Target::All,
                (_, Some(d)) => Target::Address(event.kind(), d),
                (1..=3, None) => Target::Event(event.id()),
                _ => {
                    let old = "UPDATE tombstone SET noted_at = now() - interval '1 hour' WHERE settled < 2";
                    let done = sqlx::query(old).execute(&mut admin).await.map_err(DbError::from);
                    self.deeds.other.add(done, |_| 1);
                    self.deeds.laid.add(self.db.tombstone_step(&mut Pace::of(150)).await, |n| n);
                    continue;
                }
            };
            let (pubkey, until) = (*event.pubkey(), event.created_at());
            let stone = Tombstone { pubkey, target, until, request: EventId([7; 32]) };
            self.deeds.other.add(self.db.tombstone_add(&[stone]).await, |_| 1);
        }
    }

    /// The rounds of the leading scheduler: what expires, what was archived before, what no relay has; and fates.
    async fn keeper(&self) {
        let mut dice = Dice(99);
        while self.rages() {
            let event = &self.pool[dice.roll(self.pool.len())];
            match dice.roll(8) {
                0 => {
                    let done =
                        self.db.event_fate_set(&[(event.id(), event.created_at())], Fate::Expired).await;
                    self.deeds.other.add(done, |n| n);
                }
                1 => self.deeds.other.add(self.db.orphan_event_delete(50).await, |n| n),
                2 => self.deeds.other.add(self.db.orphan_event_sweep(100).await, |n| n),
                3 | 4 => self.deeds.expired.add(self.db.event_expire(&mut Pace::of(20)).await, |(_, n)| n),
                5 | 6 => match self.db.archive_review_take(70).await {
                    Ok(Some(piece)) => {
                        let stones: Vec<Tombstone> = piece.requests.iter().flat_map(tombstones).collect();
                        self.deeds.reviewed.add(self.db.archive_review_store(&piece, &stones).await, |_| 1);
                    }
                    Ok(None) => self.test.execute("DELETE FROM archive_cursor WHERE name = 'review'").await,
                    Err(error) => assert!(passes(&error), "{error}"),
                },
                _ => {
                    let days = Some(30 + u32::try_from(dice.roll(3)).unwrap());
                    let wanted = Retention { days, ..Retention::default() };
                    self.deeds.other.add(self.db.retention_put(&wanted, true).await, |n| n);
                }
            }
        }
    }

    async fn retention(&self) {
        while self.rages() {
            let done = self.db.retention_step(&mut Pace::default()).await;
            self.deeds.retired.add(done, |step| step.map_or(0, |step| step.events + step.observations));
        }
    }

    /// Months are made one by one, and go again with the age limit where they are old.
    async fn mover(&self) {
        let mut connection = self.test.connect(Role::Superuser).await;
        let mut dice = Dice(7);
        while self.rages() {
            let made = sqlx::query("SELECT partition_maintain(extract(epoch FROM now())::bigint - 9000000, 1, now() + make_interval(months => $1))")
                .bind(i32::try_from(dice.roll(12)).unwrap());
            self.deeds.other.add(made.execute(&mut connection).await.map_err(DbError::from), |_| 1);
        }
    }

    /// What is found at any moment is whole, but for months that are made or dropped while it is looked at.
    async fn reader(&self) {
        let reader = handle(&self.test, Role::Reader);
        while self.rages() {
            self.deeds.other.add(reader.verify_sets(&mut |_| {}).await, |sets| {
                let faults: Vec<SetLine> = sets.into_iter().filter(SetLine::is_fault).collect();
                assert!(faults.is_empty(), "{faults:?}");
                1
            });
        }
    }

    async fn end(&self) {
        for tenth in 0..500 {
            if tenth >= 60 && self.deeds.are_enough() {
                break;
            }
            // bound: 500 × 100 ms; a storm of six seconds where the machine is quick enough
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.over.store(true, Ordering::Relaxed);
    }
}

fn relay_id(n: usize) -> i32 {
    i32::try_from(n).unwrap() + 1
}

const PLACES: &str = "SELECT count(*) FILTER (WHERE c.relname ~ '_[0-9]{6}$')::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'event'::regclass";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everybody_who_writes_and_takes_at_once_leaves_nothing_without_what_it_belongs_to() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let relays: Vec<(RelayUrl, i64)> = (0..RELAYS).map(|n| (url(n), 1)).collect();
    db.relay_insert(&relays).await.unwrap();
    db.retention_put(
        &Retention {
            days: Some(40),
            kinds: vec!["1984".parse().unwrap(), "7:60".parse().unwrap()],
            relays: vec![(url(3).to_string(), 20)],
        },
        false,
    )
    .await
    .unwrap();
    let mut fences = Vec::new();
    for n in 0..RELAYS {
        fences.push(claim_one(&db, &format!("w{n}"), JobKind::Sync, url(n).as_str()).await.1);
    }
    let mining = claim_one(&db, "miner", JobKind::Discover, "archive").await.1;
    let storm =
        Storm { test, db, pool: pool(), fences, deeds: Deeds::default(), over: AtomicBool::new(false) };
    tokio::join!(
        storm.writer(0),
        storm.writer(1),
        storm.writer(2),
        storm.writer(3),
        storm.reconciler(21),
        storm.reconciler(31),
        storm.importer(),
        storm.miner(&mining),
        storm.asker(),
        storm.keeper(),
        storm.retention(),
        storm.mover(),
        storm.reader(),
        storm.end()
    );
    let Storm { test, db, deeds, .. } = storm;
    assert!(deeds.are_enough(), "a storm it was not: {deeds:?}");
    // What the storm kept from being made is made now, over rows that came before it.
    db.partition_maintain(shared::clock::unix_now()).await.unwrap();
    retire(&db).await;
    // The storm may have given or taken away whatever fates and bodies it gave: what comes after it has them for certain.
    test.execute("SELECT archive_mode_set(false, 'storm', '')").await;
    let late = Factory::new(67).ending_at(shared::clock::unix_now() - DAY_S).events(120);
    archive(&db, "wss://r4.example", &late).await;
    let late: Vec<_> = late.iter().map(|event| Event::parse(&event.as_json()).unwrap()).collect();
    let late: Vec<_> = late.iter().take(40).map(|event| (event.id(), event.created_at())).collect();
    assert_eq!(db.event_fate_set(&late, Fate::Expired).await.unwrap(), 40);
    check(&test, &db).await;
}

async fn check(test: &TestDb, db: &Db) {
    let reader = handle(test, Role::Reader);
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(!sets.iter().any(SetLine::is_fault), "{sets:?}");
    let report = reader.verify(None).await.unwrap();
    assert!(report.corruptions.is_empty() && report.events > 50 && report.unkept > 0, "{report:?}");
    while db.orphan_event_delete(100).await.unwrap() > 0 {}
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(sets.iter().all(|set| set.n == 0), "not even orphans are left: {sets:?}");
    let below = "SELECT count(*)::text FROM event_relay WHERE event_key < second_key((SELECT before_at FROM archive_horizon WHERE scope = 'all'))";
    assert_eq!(value(test, below).await, "0");
    assert!(value(test, PLACES).await.parse::<u32>().unwrap() > 2, "months were made");
}
