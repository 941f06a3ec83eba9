//! Candidates on the grown archive: indexes of `event` by author, kind and tag, ways to list a relay's month, and a log of
//! what was stored. Each is made, paid for by new events, asked, and taken away.

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, Executor as _};
use tests::pg::Role;

use super::ask::{self, Question};
use super::ours::{Ours, bytes_per_row, count};
use super::workload::{Plan, Slice, author, hex};
use super::{Options, figure};
use crate::figure::{Goal, Report};
use crate::process::family_cpu_s;
use crate::queue::Cluster;

/// The archive and what is common to all candidates.
struct Bench<'a> {
    cluster: &'a Cluster,
    ours: &'a Ours,
    events: u32,
    month: u32,
    seed: u64,
    /// Microseconds of the server per new event without the candidate.
    plain_us: f64,
    plain_bytes: f64,
    questions: Vec<Question>,
}

/// An index: what it is called, how it is made, and which questions it is for.
type Candidate = (&'static str, &'static str, &'static [&'static str]);

const CANDIDATES: [Candidate; 5] = [
    (
        "author",
        "CREATE INDEX trial ON event (pubkey, event_key)",
        &["newest_by_author", "newest_by_rare_author"],
    ),
    (
        "author_prefix",
        "CREATE INDEX trial ON event (substring(pubkey FROM 1 FOR 8), event_key)",
        &["newest_by_author", "newest_by_rare_author"],
    ),
    (
        "author_hash",
        "CREATE INDEX trial ON event USING hash (pubkey)",
        &["newest_by_author", "newest_by_rare_author"],
    ),
    ("kind", "CREATE INDEX trial ON event (kind, event_key)", &["newest_by_kind", "newest_by_rare_kind"]),
    ("kind_alone", "CREATE INDEX trial ON event (kind)", &["newest_by_kind", "newest_by_rare_kind"]),
];

pub(super) async fn run(
    cluster: &Cluster,
    ours: &Ours,
    options: &Options,
    month: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let slice = Slice::make(Plan {
        seed: u64::from(month),
        month,
        months: 1,
        part: (0, 1),
        events: options.events(),
        single: false,
    })?;
    let questions = ask::questions(ours, &slice, month)?;
    let mut bench = Bench {
        cluster,
        ours,
        events: options.events() / 4,
        month,
        seed: 20_000,
        plain_us: f64::NAN,
        plain_bytes: f64::NAN,
        questions,
    };
    // The first pays for what is only done once.
    bench.insert_us().await?;
    let plain = [bench.insert_us().await?, bench.insert_us().await?];
    bench.plain_us = plain[0].midpoint(plain[1]);
    bench.plain_bytes = bytes_per_row(&ours.test, "event").await?;
    report.add(&figure("insert_us_per_event", plain[0], plain[1], "the same again", "us", Goal::Stated));
    for candidate in CANDIDATES {
        bench.candidate(candidate, report).await?;
    }
    bench.tags(report).await?;
    bench.lists(report).await?;
    bench.log(report).await
}

impl Bench<'_> {
    /// Microseconds of the server per event that is new and on one relay, with the vacuum that follows.
    async fn insert_us(&mut self) -> anyhow::Result<f64> {
        self.seed += 1;
        let plan = Plan {
            seed: self.seed,
            month: self.month,
            months: 1,
            part: (0, 1),
            events: self.events,
            single: true,
        };
        let fed = self.ours.feed(&Slice::make(plan)?).await?;
        let vacuum = self.ours.settle(self.month).await;
        Ok((fed.cpu_s + vacuum) * 1_000_000.0 / count(fed.events))
    }

    async fn question(&self, name: &str) -> anyhow::Result<f64> {
        let question = self.questions.iter().find(|question| question.name == name).context("a question")?;
        Ok(ask::sql(self.cluster.postmaster, &self.ours.test, &question.ours).await?.cpu_ms)
    }

    async fn candidate(&mut self, (name, make, asked): Candidate, report: &mut Report) -> anyhow::Result<()> {
        let mut before = Vec::new();
        for question in asked {
            before.push(self.question(question).await?);
        }
        self.ours.test.execute(make).await;
        self.ours.test.execute("ANALYZE event").await;
        let bytes = self.ours.number(&index_bytes("trial")).await?;
        let us = self.insert_us().await?;
        report.add(&figure(
            format!("index_{name}_bytes_per_event"),
            bytes,
            self.plain_bytes,
            "all of an event without it",
            "bytes",
            Goal::Stated,
        ));
        report.add(&figure(
            format!("index_{name}_insert_us"),
            us,
            self.plain_us,
            "without it",
            "us",
            Goal::Stated,
        ));
        for (question, before) in asked.iter().zip(before) {
            // The planner uses an expression only when it is written out.
            let after = if name == "author_prefix" {
                self.prefixed(question).await?
            } else {
                self.question(question).await?
            };
            report.add(&figure(
                format!("index_{name}_{question}_cpu_ms"),
                after,
                before,
                "without it",
                "ms",
                Goal::Stated,
            ));
        }
        self.ours.test.execute("DROP INDEX trial").await;
        Ok(())
    }

    async fn prefixed(&self, question: &str) -> anyhow::Result<f64> {
        let author = hex(&author(if question == "newest_by_author" { 3 } else { 25_000 }));
        let sql = format!(
            "SELECT id FROM event WHERE substring(pubkey FROM 1 FOR 8) = '\\x{}' AND pubkey = '\\x{author}' ORDER BY event_key DESC LIMIT 100",
            &author[..16]
        );
        Ok(ask::sql(self.cluster.postmaster, &self.ours.test, &sql).await?.cpu_ms)
    }

    /// The index of tags: as it is, with every entry in its place at once, none, and a table of its own.
    async fn tags(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let asked = ["newest_by_tag", "newest_by_rare_tag"];
        let test = &self.ours.test;
        let mut found = Vec::new();
        for question in asked {
            found.push(self.question(question).await?);
        }
        let bytes = self.ours.number(&index_bytes("event_tag")).await?;
        report.add(&figure(
            "tag_gin_bytes_per_event",
            bytes,
            self.plain_bytes,
            "all of an event",
            "bytes",
            Goal::Stated,
        ));
        // As it stands between two vacuums: the list of what is not in its place yet is read with every question.
        self.seed += 1;
        let plan = Plan {
            seed: self.seed,
            month: self.month,
            months: 1,
            part: (0, 1),
            events: self.events / 5,
            single: true,
        };
        self.ours.feed(&Slice::make(plan)?).await?;
        for (question, before) in asked.into_iter().zip(&found) {
            let pending = self.question(question).await?;
            report.add(&figure(
                format!("tag_gin_pending_{question}_cpu_ms"),
                pending,
                *before,
                "after a vacuum",
                "ms",
                Goal::Stated,
            ));
        }
        self.ours.settle(self.month).await;
        for (name, make) in [
            ("tag_none", ""),
            (
                "tag_gin_at_once",
                "CREATE INDEX event_tag ON event USING gin (tag_hashes) WITH (fastupdate = off)",
            ),
            (
                "tag_gin_short_list",
                "CREATE INDEX event_tag ON event USING gin (tag_hashes) WITH (gin_pending_list_limit = 512)",
            ),
            (
                "tag_gin_long_list",
                "CREATE INDEX event_tag ON event USING gin (tag_hashes) WITH (gin_pending_list_limit = 32768)",
            ),
            ("tag_gin_again", "CREATE INDEX event_tag ON event USING gin (tag_hashes)"),
        ] {
            test.execute("DROP INDEX IF EXISTS event_tag").await;
            if !make.is_empty() {
                test.execute(make).await;
            }
            let us = self.insert_us().await?;
            report.add(&figure(
                format!("{name}_insert_us"),
                us,
                self.plain_us,
                "the index as it is",
                "us",
                Goal::Stated,
            ));
        }
        self.side(&found, report).await
    }

    /// A row per tag and event.
    async fn side(&self, found: &[f64], report: &mut Report) -> anyhow::Result<()> {
        let (test, pg) = (&self.ours.test, self.cluster.postmaster);
        test.execute(
            "CREATE TABLE trial AS SELECT h AS hash, event_key FROM event, unnest(tag_hashes) h ORDER BY event_key;
             CREATE INDEX trial_hash ON trial (hash, event_key); CREATE INDEX trial_event ON trial (event_key)",
        )
        .await;
        test.execute("VACUUM (ANALYZE) trial").await;
        let bytes = self
            .ours
            .number("SELECT pg_total_relation_size('trial') / (SELECT count(*) FROM event)::float8")
            .await?;
        report.add(&figure(
            "tag_side_bytes_per_event",
            bytes,
            self.plain_bytes,
            "all of an event",
            "bytes",
            Goal::Stated,
        ));
        for (name, rank, before) in [("newest_by_tag", 3, found[0]), ("newest_by_rare_tag", 5_000, found[1])]
        {
            let hash = shared::models::tag_hash('p', &hex(&author(rank)));
            let sql = format!(
                "SELECT e.id, e.tags FROM (SELECT event_key FROM trial WHERE hash = {hash} ORDER BY event_key DESC LIMIT 100) c
                 CROSS JOIN LATERAL (SELECT x.id, x.tags FROM event x WHERE x.event_key = c.event_key OFFSET 0) e"
            );
            let cost = ask::sql(pg, test, &sql).await?.cpu_ms;
            report.add(&figure(format!("tag_side_{name}_cpu_ms"), cost, before, "GIN", "ms", Goal::Stated));
        }
        test.execute("CREATE TABLE fresh AS SELECT event_key, tag_hashes, (row_number() OVER ()) / 1000 AS batch FROM event ORDER BY event_key DESC LIMIT 20000; CREATE INDEX ON fresh (batch)").await;
        let events = self.ours.number("SELECT count(*) FROM fresh").await?;
        let cpu = family_cpu_s(pg);
        test.execute(
            "DO $$ BEGIN FOR i IN 0 .. 20 LOOP
                 INSERT INTO trial SELECT h, event_key + 1 FROM fresh, unnest(tag_hashes) h WHERE batch = i ORDER BY 1, 2;
             END LOOP; END $$",
        )
        .await;
        let us = (family_cpu_s(pg) - cpu) * 1_000_000.0 / events;
        report.add(&figure(
            "tag_side_insert_us",
            self.plain_us + us,
            self.plain_us,
            "GIN; the side table beside it",
            "us",
            Goal::Stated,
        ));
        test.execute("DROP TABLE trial, fresh").await;
        Ok(())
    }

    /// Ways to list a relay's month in order.
    async fn lists(&self, report: &mut Report) -> anyhow::Result<()> {
        let (pg, test) = (self.cluster.postmaster, &self.ours.test);
        let relay = self.ours.relay_id(9)?;
        let (lo, hi) = ask::month_keys(self.month);
        let join = ask::sql(pg, test, &ask::list_sql(relay, self.month)).await?.cpu_ms;
        let lateral = format!(
            "SELECT e.id, e.created_at FROM (SELECT event_key FROM event_relay WHERE relay_id = {relay} AND event_key >= {lo} AND event_key < {hi}
             ORDER BY event_key) o CROSS JOIN LATERAL (SELECT x.id, x.created_at FROM event x
             WHERE x.event_key = o.event_key AND x.event_key >= {lo} AND x.event_key < {hi} OFFSET 0) e ORDER BY o.event_key"
        );
        let keys = format!(
            "SELECT e.event_key, e.id FROM event_relay o JOIN event e ON e.event_key = o.event_key
             WHERE o.relay_id = {relay} AND o.event_key >= {lo} AND o.event_key < {hi} AND e.event_key >= {lo} AND e.event_key < {hi} ORDER BY 1"
        );
        for (name, sql) in [("list_month_lateral", &lateral), ("list_month_index_only", &keys)] {
            let cost = ask::sql(pg, test, sql).await?.cpu_ms;
            report.add(&figure(format!("{name}_cpu_ms"), cost, join, "a plain join", "ms", Goal::Stated));
        }
        test.execute(&format!(
            "CREATE TABLE trial AS SELECT event_key, relay_id, seen_at::integer FROM event_relay WHERE event_key >= {lo} AND event_key < {hi}"
        ))
        .await;
        let narrow = self
            .ours
            .number("SELECT pg_relation_size('trial') / (SELECT count(*) FROM trial)::float8")
            .await?;
        test.execute("DROP TABLE trial").await;
        report.add(&figure(
            "narrow_row_bytes",
            narrow,
            52.0,
            "seen_at of four bytes, evidence in its sign",
            "bytes",
            Goal::Stated,
        ));
        test.execute("CREATE TABLE trial AS SELECT o.relay_id, o.event_key, e.id FROM event_relay o JOIN event e USING (event_key) WHERE false").await;
        test.execute(&format!(
            "INSERT INTO trial SELECT o.relay_id, o.event_key, e.id FROM event_relay o JOIN event e ON e.event_key = o.event_key
             WHERE o.event_key >= {lo} AND o.event_key < {hi} AND e.event_key >= {lo} AND e.event_key < {hi};
             CREATE INDEX ON trial (relay_id, event_key) INCLUDE (id)"
        ))
        .await;
        test.execute("VACUUM (ANALYZE) trial").await;
        let id_in_row = format!(
            "SELECT id, event_key FROM trial WHERE relay_id = {relay} AND event_key >= {lo} AND event_key < {hi} ORDER BY event_key"
        );
        let cost = ask::sql(pg, test, &id_in_row).await?.cpu_ms;
        report.add(&figure("list_month_id_in_row_cpu_ms", cost, join, "a plain join", "ms", Goal::Stated));
        let bytes = self
            .ours
            .number("SELECT pg_total_relation_size('trial') / (SELECT count(*) FROM trial)::float8")
            .await?;
        report.add(&figure(
            "list_month_id_in_row_bytes",
            bytes,
            f64::NAN,
            "without its other index",
            "bytes",
            Goal::Stated,
        ));
        test.execute("DROP TABLE trial").await;
        Ok(())
    }

    /// One row of arrays for each call, as a log of what the views have not seen yet would have.
    async fn log(&self, report: &mut Report) -> anyhow::Result<()> {
        let pg = self.cluster.postmaster;
        self.ours.test.execute("CREATE TABLE trial (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, relay_id integer, keys bigint[])").await;
        let mut connection = self.ours.test.connect(Role::Superuser).await;
        let calls = 500_u32;
        let keys: Vec<i64> = (0..1_000_i64).map(|i| (1_700_000_000 << 31) + i * 7_919_333).collect();
        let cpu = family_cpu_s(pg);
        for _ in 0..calls {
            sqlx::query("INSERT INTO trial (relay_id, keys) VALUES (1, $1)")
                .bind(&keys)
                .execute(&mut connection)
                .await?;
        }
        connection.execute(AssertSqlSafe("DELETE FROM trial".to_owned())).await?;
        connection.execute(AssertSqlSafe("VACUUM trial".to_owned())).await?;
        let per_1k = (family_cpu_s(pg) - cpu) / f64::from(calls);
        report.add(&figure(
            "log_cpu_s_per_1k",
            per_1k,
            f64::NAN,
            "nothing; written, deleted, vacuumed",
            "s",
            Goal::Stated,
        ));
        self.ours.test.execute("DROP TABLE trial").await;
        Ok(())
    }
}

/// Bytes per event of a partitioned index.
fn index_bytes(index: &str) -> String {
    format!(
        "SELECT sum(pg_relation_size(relid)) / (SELECT count(*)::float8 FROM event) FROM pg_partition_tree('{index}') WHERE isleaf"
    )
}
