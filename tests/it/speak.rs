//! What the monitor finds out beyond reading, and who we say we are: against scripted relays and real programs.

use std::sync::Arc;

use serde_json::json;
use shared::checks::{Looks, MonitorReport, Speak, run_all};
use shared::db::CapabilityResult;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{
    AddressPolicy, AuthSeen, By, JobKind, Measured, Network, Outcome, Reason, RelayUrl, Support, Until,
};
use shared::net::{Dialer, NetConfig};
use shared::nips::Keys;
use tests::factory::Factory;
use tests::pg::Role;
use tests::programs::{Kind, Program};
use tests::publish::publish;
use tests::scripted::{AuthScript, Extra, Script, ScriptedRelay, Speech, When};

use super::jobs::{config, context, known_relay, run};
use super::support::{claim_one, handle, migrated, pairs, value};

const SECRET: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";

fn dialer() -> Dialer {
    let mut net = NetConfig { policy: AddressPolicy::local(), ..NetConfig::default() };
    net.network_mut(Network::Clearnet).connect_timeout_ms = 1_000;
    Dialer::new(net).unwrap()
}

pub(super) fn speak() -> Speak {
    Speak { identity: Some(Keys::parse(SECRET).unwrap()), ..Speak::default() }
}

pub(super) async fn look(url: &str, speak: Speak) -> MonitorReport {
    let url = RelayUrl::parse(url, &AddressPolicy::local()).unwrap();
    Box::pin(run_all(&dialer(), &url, &Looks { speak, ..Looks::default() })).await
}

async fn survey(url: &str) -> Measured {
    let report = look(url, Speak { survey: true, ..Speak::default() }).await;
    report.spoken.measured.clone().unwrap_or_else(|| panic!("{report:?}"))
}

/// A context that shows its key where it is asked for one.
fn known_to_relays(ctx: Ctx) -> Ctx {
    let looks = Looks { speak: Speak { auth: true, ..speak() }, ..Looks::default() };
    Ctx { config: Arc::new(JobsConfig { looks, ..config() }), ..ctx }
}

#[tokio::test]
async fn a_relay_that_asks_who_we_are_is_told_once_and_then_read() {
    let Some(test) = migrated().await else { return };
    let ctx = known_to_relays(context(&test, config()));
    let events = Factory::new(1).events(60);
    for (round, when) in [When::Connected, When::Asked, When::Refused].into_iter().enumerate() {
        let auth = Some(AuthScript::required(when));
        let script = Script::honest(&events, 20).speaking(Speech { auth, ..Speech::default() });
        let relay = ScriptedRelay::start(script).await;
        let url = known_relay(&ctx.db, &relay).await;
        let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert_eq!(report["proved_share"], 1.0, "{when:?}: {report}");
        let counts = relay.counts();
        assert_eq!((counts.auths, counts.upgrades), (1, 1), "{when:?}: {counts:?}");
        let requests = relay.requests();
        assert_eq!(requests[0], requests[1], "{when:?}: the refused request is made once more");
        let held = value(&test, "SELECT count(*)::text FROM event_relay").await;
        assert_eq!(held, (60 * (round + 1)).to_string(), "{when:?}");
    }
}

#[tokio::test]
async fn what_a_relay_says_to_our_key_is_final() {
    let Some(test) = migrated().await else { return };
    let with_key = known_to_relays(context(&test, config()));
    let without = context(&test, config());
    let required = AuthScript::required(When::Asked);
    let restricted = Some("restricted: members only".to_owned());
    for (name, ctx, auth, auths, grade) in [
        ("nobody asked us to", &without, required.clone(), 0, "refused/auth_required"),
        (
            "the answer is refused",
            &with_key,
            AuthScript { refuses: restricted.clone(), ..required.clone() },
            1,
            "refused/restricted",
        ),
        (
            "members only",
            &with_key,
            AuthScript { restricted: restricted.clone(), ..required },
            1,
            "refused/restricted",
        ),
    ] {
        let script = Script::honest(&Factory::new(1).events(5), 20);
        let relay =
            ScriptedRelay::start(script.speaking(Speech { auth: Some(auth), ..Speech::default() })).await;
        let url = known_relay(&ctx.db, &relay).await;
        test.execute("TRUNCATE coverage").await;
        run(ctx, JobKind::Sync, url.as_str()).await.unwrap();
        let grades =
            value(&test, "SELECT string_agg(DISTINCT grade || '/' || reason, ' ') FROM coverage").await;
        assert_eq!((relay.counts().auths, grades.as_str()), (auths, grade), "{name}");
        assert!(relay.counts().reqs <= 2, "{name}: {:?}", relay.counts());
    }
}

#[tokio::test]
async fn a_record_is_measured_once_an_interval_and_reads_back() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let speech = Speech {
        count: Extra::Works,
        negentropy: Extra::Closed("unsupported: no reconciliation".to_owned()),
        needs_kinds: true,
        default_limit: Some(25),
        above_cap: Some(25),
        exclusive_until: true,
        ..Speech::default()
    };
    let document = json!({ "supported_nips": [1, 11, 50, 77], "limitation": { "max_limit": 100, "default_limit": 100, "auth_required": true } });
    let script = Script::honest(&Factory::new(2).events(400), 100).speaking(speech).saying(&document);
    let relay = ScriptedRelay::start(script).await;
    let url = known_relay(&ctx.db, &relay).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let id = ctx.db.relay_get(&url, "test").await.unwrap().unwrap().id;
    let record = ctx.db.capability_get(id).await.unwrap().unwrap();
    let measured = record.measured.clone().unwrap();
    assert_eq!(
        (measured.auth, measured.count.seen, measured.count.by),
        (AuthSeen::None, Support::Works, By::Count)
    );
    assert_eq!(
        (measured.negentropy.seen, measured.negentropy.words.as_str()),
        (Support::Refused, "unsupported: no reconciliation")
    );
    assert_eq!((measured.without_kinds.seen, measured.search.seen), (Support::Refused, Support::Ignored));
    assert_eq!(
        (measured.default_limit, measured.max_limit, measured.above_brings_less),
        (Some(25), Some(100), Some(true))
    );
    assert_eq!((measured.until, measured.requests, measured.ended), (Until::Exclusive, 7, Reason::None));
    assert_eq!(record.claims.unwrap().max_limit, Some(100));
    assert_eq!((record.vantage.as_deref(), record.write), (Some("test"), None));
    let counts = relay.counts();
    assert_eq!((counts.upgrades, counts.reqs, counts.extras, counts.writes), (1, 6, 2, 0), "{counts:?}");

    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    assert_eq!((relay.counts().reqs, relay.counts().extras), (7, 2), "not asked again within the day");
    let differences =
        pairs(&test, "SELECT subject, claimed || ' -> ' || measured FROM relay_capability_difference").await;
    let expected = [
        ("above_limit", "clamped -> brings less"),
        ("auth_required", "true -> none"),
        ("default_limit", "100 -> 25"),
        ("nip45", "not listed -> works"),
        ("nip50", "supported -> ignored"),
        ("nip77", "supported -> refused"),
        ("until", "inclusive -> exclusive"),
    ];
    let expected = expected.map(|(subject, words)| (subject.to_owned(), words.to_owned()));
    assert_eq!(differences.into_iter().collect::<Vec<_>>(), expected);

    test.execute("UPDATE relay_capability SET measured_at = measured_at - 90000").await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    assert_eq!(relay.counts().extras, 4, "the day is over");
    test.execute(r#"UPDATE relay_capability SET measured = jsonb_set(measured, '{until}', '"perhaps"')"#)
        .await;
    let error = ctx.db.capability_get(id).await.unwrap_err().to_string();
    assert!(error.contains("relay_capability") && error.contains("measured"), "{error}");
}

#[tokio::test]
async fn each_way_to_answer_a_reconciliation_is_told_from_the_others() {
    for (extra, seen, by) in [
        (Extra::Works, Support::Works, By::NegMsg),
        (Extra::Closed("error: negentropy disabled".to_owned()), Support::Refused, By::Closed),
        (Extra::Notice("negentropy disabled".to_owned()), Support::Refused, By::Notice),
        (Extra::NegErr("blocked: too many query results".to_owned()), Support::Refused, By::NegErr),
        (Extra::Eose, Support::Undecided, By::Eose),
        (Extra::Silent, Support::Silent, By::Nothing),
        (Extra::Unknown, Support::Refused, By::Notice),
    ] {
        let speech = Speech { negentropy: extra.clone(), hints: true, searches: true, ..Speech::default() };
        let relay =
            ScriptedRelay::start(Script::honest(&Factory::new(3).events(80), 500).speaking(speech)).await;
        let measured = survey(&relay.url()).await;
        assert_eq!((measured.negentropy.seen, measured.negentropy.by), (seen, by), "{extra:?}");
        assert_eq!((measured.hint, measured.search.seen), (Support::Works, Support::Works), "{extra:?}");
        assert_eq!(
            (measured.max_limit, measured.default_limit),
            (None, None),
            "too little to tell: {measured:?}"
        );
    }
}

#[tokio::test]
async fn a_relay_that_has_enough_of_us_is_left_alone() {
    let speech = Speech { count: Extra::Closed("rate-limited: slow down".to_owned()), ..Speech::default() };
    let relay = ScriptedRelay::start(Script::honest(&Factory::new(3).events(5), 500).speaking(speech)).await;
    let measured = survey(&relay.url()).await;
    assert_eq!((measured.ended, measured.requests), (Reason::RateLimited, 1));
    assert_eq!((relay.counts().reqs, relay.counts().extras), (1, 1), "the read probe and the question");
    let greedy = Script::honest(&Factory::new(3).events(5), 500).closing(0, "blocked: go away");
    let relay = ScriptedRelay::start(greedy).await;
    assert_eq!(survey(&relay.url()).await.ended, Reason::Blocked);
    assert_eq!((relay.counts().reqs, relay.counts().extras), (1, 0));
}

#[tokio::test]
async fn reading_is_judged_as_anybody_and_what_a_relay_can_do_as_ourselves() {
    let auth = Some(AuthScript::required(When::Connected));
    let script = Script::honest(&Factory::new(4).events(80), 500).speaking(Speech {
        auth,
        count: Extra::Works,
        ..Speech::default()
    });
    let relay = ScriptedRelay::start(script).await;
    let report = look(&relay.url(), Speak { survey: true, auth: true, ..speak() }).await;
    assert_eq!((report.up, report.reason), (true, Reason::AuthRequired), "the read probe is anonymous");
    let measured = report.spoken.measured.unwrap();
    assert_eq!(
        (measured.auth, measured.count.seen, measured.until),
        (AuthSeen::Accepted, Support::Works, Until::Inclusive)
    );
    assert_eq!((relay.counts().auths, relay.counts().upgrades), (1, 1));
    let anonymous = survey(&relay.url()).await;
    assert_eq!(
        (anonymous.auth, anonymous.requests, anonymous.ended),
        (AuthSeen::Required, 0, Reason::AuthRequired)
    );
}

/// What each program, which nobody here wrote, was seen to do: by hand first.
async fn program(kind: Kind, judge: fn(&Measured)) {
    let Some(program) = Program::start(kind).await else { return };
    let events = Factory::new(7).events(1_200);
    assert_eq!(publish(&program.url, &events).await.unwrap().refused, Vec::<String>::new());
    let report = look(&program.url, Speak { survey: true, write: true, ..speak() }).await;
    let measured = report.spoken.measured.unwrap();
    judge(&measured);
    assert_eq!(report.spoken.write.unwrap().outcome, Outcome::Ok, "{kind:?} takes an ephemeral event");
}

#[tokio::test]
async fn the_local_relay_is_seen_as_it_is() {
    program(Kind::Local, |measured| {
        assert_eq!((measured.negentropy.seen, measured.count.seen), (Support::Works, Support::Works));
        assert_eq!((measured.until, measured.default_limit), (Until::Inclusive, Some(500)));
    })
    .await;
}

#[tokio::test]
async fn the_npm_relay_is_seen_as_it_is() {
    program(Kind::Npm, |measured| {
        assert_eq!((measured.until, measured.default_limit), (Until::Inclusive, Some(100)));
        assert_eq!((measured.count.seen, measured.count.by), (Support::Refused, By::Notice));
    })
    .await;
}

#[tokio::test]
async fn the_python_relay_is_seen_as_it_is() {
    program(Kind::Python, |measured| {
        assert_eq!((measured.until, measured.default_limit), (Until::Exclusive, None));
        assert_eq!((measured.count.seen, measured.negentropy.seen), (Support::Silent, Support::Silent));
        assert_eq!((measured.without_kinds.seen, measured.search.seen), (Support::Works, Support::Ignored));
    })
    .await;
}

#[tokio::test]
async fn a_record_of_a_lost_lease_is_not_written_and_its_neighbour_is() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let url = |text: &str| RelayUrl::parse(text, &AddressPolicy::public()).unwrap();
    let (lost, held) = (url("wss://lost.example"), url("wss://held.example"));
    db.relay_insert(&[(lost.clone(), 1), (held.clone(), 1)]).await.unwrap();
    let record = |fence, url: &RelayUrl| CapabilityResult {
        fence,
        url: url.clone(),
        at: 1_700_000_000,
        claims: None,
        measured: Some(Measured::default()),
        write: None,
    };
    let (_, gone) = claim_one(&db, "w1", JobKind::Monitor, lost.as_str()).await;
    db.worker_stop("w1").await.unwrap();
    let (_, fence) = claim_one(&db, "w2", JobKind::Monitor, held.as_str()).await;
    let results = [record(gone, &lost), record(fence, &held)];
    assert_eq!(db.capability_put("test", &results).await.unwrap(), [0]);
    let written = "SELECT string_agg(url, ' ') FROM relay_capability JOIN relay r ON r.id = relay_id";
    assert_eq!(value(&test, written).await, held.as_str());
}

#[tokio::test]
async fn pages_are_as_long_as_those_of_the_relay_were_measured_to_be() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(7).events(90);
    let relay = ScriptedRelay::start(Script::honest(&events, 30)).await;
    let url = known_relay(&ctx.db, &relay).await;
    for (measured, asked) in [(30, 30), (3, 20), (9_000, 1_000)] {
        let (_, fence) = claim_one(&ctx.db, "w1", JobKind::Monitor, url.as_str()).await;
        let result = CapabilityResult {
            fence,
            url: url.clone(),
            at: 5,
            claims: None,
            measured: Some(Measured { max_limit: Some(measured), ..Measured::default() }),
            write: None,
        };
        assert!(ctx.db.capability_put("test", &[result]).await.unwrap().is_empty());
        test.execute("DELETE FROM apalis.jobs").await;
        let before = relay.requests().len();
        run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert_eq!(relay.requests()[before]["limit"], asked, "cut at {measured}");
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "90");
}
