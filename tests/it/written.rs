//! The write probe: whom an event is published to, what proves it, and where proof of work ends.

use serde_json::json;
use shared::checks::{Looks, Speak};
use shared::jobs::{JobsConfig, WriteTo};
use shared::models::{JobKind, Outcome, Reason};
use tests::pg::Role;
use tests::scripted::{AuthScript, Script, ScriptedRelay, Speech, When, Writes};

use super::jobs::{config, context, known_relay, run};
use super::speak::{look, speak};
use super::support::{handle, migrated, value};

#[tokio::test]
async fn nothing_is_written_unless_asked_for_and_then_only_where() {
    let Some(test) = migrated().await else { return };
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let looks = Looks { speak: speak(), ..Looks::default() };
    let here = || vec!["127.0.0.1".to_owned()];
    let elsewhere = || vec!["relay.example".to_owned()];
    for (name, write_probe, writes) in [
        ("nobody's", WriteTo::Nobody, 0),
        ("another's", WriteTo::Own(elsewhere()), 0),
        ("our own", WriteTo::Own(here()), 1),
        ("our own, again at once", WriteTo::Own(here()), 2),
        ("everybody's, but not so soon", WriteTo::All(elsewhere()), 2),
    ] {
        let ctx = context(&test, JobsConfig { looks: looks.clone(), write_probe, ..config() });
        let url = known_relay(&ctx.db, &relay).await;
        run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
        assert_eq!(relay.counts().writes, writes, "{name}");
        test.execute("UPDATE relay_check SET checked_at = checked_at - 10").await;
    }
    let row =
        "SELECT write_outcome || ' ' || write_reason || ' ' || (write_ms IS NOT NULL) FROM relay_capability";
    assert_eq!(value(&test, row).await, "ok none true");
    let series = "SELECT count(write_ms)::text FROM relay_check WHERE kind = 'rtt'";
    assert_eq!(value(&test, series).await, "2", "rtt-write of the looks that wrote");
    assert_eq!(value(&test, "SELECT (measured IS NOT NULL)::text FROM relay_capability").await, "true");
    let reader = handle(&test, Role::Reader);
    let record = reader.capability_get(1).await.unwrap().unwrap();
    assert_eq!(record.write.unwrap().1.outcome, Outcome::Ok);
}

#[tokio::test]
async fn the_write_proof_is_an_ok_and_every_other_end_has_its_reason() {
    let work = |bits, text: Option<&str>| Writes::Work(bits, text.map(str::to_owned));
    for (name, writes, outcome, reason, detail, events) in [
        ("taken", Writes::Accept, Outcome::Ok, Reason::None, "", 1),
        (
            "refused",
            Writes::Refuse("blocked: read only".into()),
            Outcome::Refused,
            Reason::Blocked,
            "blocked: read only",
            1,
        ),
        (
            "refused in other words",
            Writes::Refuse("nope\u{7}".into()),
            Outcome::Refused,
            Reason::WriteRefused,
            "nope",
            1,
        ),
        ("silent", Writes::Silent, Outcome::Timeout, Reason::Silent, "", 1),
        ("work is done", work(8, None), Outcome::Ok, Reason::None, "", 2),
        (
            "too much work",
            work(200, None),
            Outcome::Skipped,
            Reason::PowDemanded,
            "it demands 200 bits of proof of work; 16 are done at most",
            1,
        ),
        (
            "work beyond number",
            work(8, Some("pow: 9".repeat(90).as_str())),
            Outcome::Skipped,
            Reason::PowDemanded,
            "it demands proof of work and does not say how much",
            1,
        ),
        (
            "work that is never enough",
            work(250, Some("pow: 8 bits needed")),
            Outcome::Refused,
            Reason::Restricted,
            "pow: 8 bits needed",
            2,
        ),
    ] {
        let relay = ScriptedRelay::start(Script { writes, ..Script::honest(&[], 10) }).await;
        let report = look(&relay.url(), Speak { write: true, ..speak() }).await;
        let write = report.spoken.write.clone().unwrap_or_else(|| panic!("{name}: nothing was written"));
        assert_eq!((write.outcome, write.reason, write.detail.as_str()), (outcome, reason, detail), "{name}");
        assert_eq!(write.write_ms.is_some(), outcome == Outcome::Ok, "{name}");
        assert_eq!(relay.counts().writes, events, "{name}");
        assert!(report.up && report.reason == Reason::None, "{name}: reading is another matter");
    }
}

#[tokio::test]
async fn work_beyond_our_bound_that_the_document_asks_for_is_not_even_tried() {
    let document = json!({ "limitation": { "min_pow_difficulty": 200 } });
    let relay = ScriptedRelay::start(Script::honest(&[], 10).saying(&document)).await;
    let write = look(&relay.url(), Speak { write: true, ..speak() }).await.spoken.write.unwrap();
    assert_eq!((write.reason, write.pow, relay.counts().writes), (Reason::PowDemanded, Some(200), 0));
    let document = json!({ "limitation": { "min_pow_difficulty": 8 } });
    let script = Script { writes: Writes::Work(8, None), ..Script::honest(&[], 10) };
    let relay = ScriptedRelay::start(script.saying(&document)).await;
    let write = look(&relay.url(), Speak { write: true, ..speak() }).await.spoken.write.unwrap();
    assert_eq!(
        (write.outcome, write.pow, relay.counts().writes),
        (Outcome::Ok, Some(8), 1),
        "done beforehand"
    );
}

#[tokio::test]
async fn a_writer_is_asked_who_it_is_and_writes_once_more() {
    let auth = Some(AuthScript::required(When::Asked));
    let relay =
        ScriptedRelay::start(Script::honest(&[], 10).speaking(Speech { auth, ..Speech::default() })).await;
    let write = look(&relay.url(), Speak { write: true, auth: true, ..speak() }).await.spoken.write.unwrap();
    assert_eq!((write.outcome, relay.counts().writes, relay.counts().auths), (Outcome::Ok, 2, 1));
    let write = look(&relay.url(), Speak { write: true, ..speak() }).await.spoken.write.unwrap();
    assert_eq!(
        (write.reason, relay.counts().auths),
        (Reason::AuthRequired, 1),
        "not where we are to stay unknown"
    );
}
