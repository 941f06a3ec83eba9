//! Subscriptions in virtual time.

use super::*;

const LIMITS: Limits =
    Limits { idle_ms: 1_000, total_ms: 10_000, max_events: 5, max_bytes: 100_000, max_stray_frames: 20 };

fn start() -> Subscription {
    let filter = Filter { since: Some(100), until: Some(200), ..Filter::default() };
    Subscription::start("s", filter, LIMITS, 0).0
}

fn body(id: u8, created_at: i64) -> String {
    format!(
        r#"{{"id":"{}","pubkey":"{}","created_at":{created_at},"kind":1,"tags":[],"content":"","sig":"{}"}}"#,
        hex::encode([id; 32]),
        "ab".repeat(32),
        "cd".repeat(64),
    )
}

fn event(sub: &str, id: u8, created_at: i64) -> String {
    format!(r#"["EVENT","{sub}",{}]"#, body(id, created_at))
}

/// The JSON of the event that a text brings, by what the session says of it.
fn taken(sub: &mut Subscription, at: u64, text: &str) -> String {
    let Step::Event(read) = sub.on_text(at, text) else { panic!("{text}") };
    assert_eq!((read.facts.pubkey, read.sig), ([0xab; 32], Some([0xcd; 64])));
    text[read.span].to_owned()
}

fn eose() -> Step {
    Step::Done(PageEnd::Eose { hint: None })
}

fn notice(message: &str) -> Step {
    Step::Done(PageEnd::Notice { message: message.to_owned() })
}

const IDLE: Step = Step::Done(PageEnd::Timeout { idle: true });
const TOTAL: Step = Step::Done(PageEnd::Timeout { idle: false });

#[test]
fn the_req_carries_the_filter() {
    let filter = Filter { limit: Some(1), ..Filter::default() };
    assert_eq!(Subscription::start("a\"b", filter, LIMITS, 0).1, r#"["REQ","a\"b",{"limit":1}]"#);
}

#[test]
fn events_pass_in_wire_order_and_eose_ends() {
    let mut sub = start();
    assert_eq!(taken(&mut sub, 1, &event("s", 2, 150)), body(2, 150));
    // Written otherwise, it is the same event.
    assert_eq!(taken(&mut sub, 2, &format!(r#"["EVENT","s",{},7]"#, body(1, 160))), body(1, 160));
    assert_eq!(
        sub.on_text(3, r#"["EOSE","s",["finish"]]"#),
        Step::Done(PageEnd::Eose { hint: Some(EoseHint::Finish) })
    );
    assert_eq!(sub.facts().seen, [(150, EventId([2; 32])), (160, EventId([1; 32]))]);
    assert_eq!(sub.deadline_ms(), u64::MAX);
}

#[test]
fn nothing_follows_the_end() {
    let mut sub = start();
    assert_eq!(sub.on_text(1, r#"["EOSE","s"]"#), eose());
    assert_eq!(sub.on_text(2, &event("s", 1, 150)), Step::Continue);
    assert_eq!(sub.on_text(2, r#"["EOSE","s"]"#), Step::Continue);
    assert_eq!(sub.on_closed(3, Cut::Disconnected), Step::Continue);
    assert_eq!(sub.on_tick(99_999), Step::Continue);
    assert!(sub.facts().seen.is_empty());
}

#[test]
fn an_eose_of_another_subscription_is_not_ours() {
    let mut sub = start();
    assert_eq!(sub.on_text(1, r#"["EOSE","t"]"#), Step::Continue);
    assert_eq!(sub.on_text(1, r#"["CLOSED","t","error: x"]"#), Step::Continue);
    assert_eq!(sub.on_text(1, &event("t", 1, 150)), Step::Continue);
    assert_eq!(sub.on_tick(999), Step::Continue);
    assert_eq!(sub.on_tick(1_000), IDLE);
    assert_eq!((sub.stray(), sub.facts()), (3, &PageFacts::default()));
}

#[test]
fn without_eose_the_idle_timer_ends_it() {
    let mut sub = start();
    assert_eq!(sub.deadline_ms(), 1_000);
    sub.on_text(600, &event("s", 1, 150));
    assert_eq!(sub.deadline_ms(), 1_600);
    assert_eq!(sub.on_tick(1_599), Step::Continue);
    assert_eq!(sub.on_tick(1_600), IDLE);
}

#[test]
fn only_new_matching_events_feed_the_idle_timer() {
    let useless = [
        event("s", 1, 150), // a repeat
        event("s", 2, 201), // not asked for
        event("s", 3, 99),
        event("t", 4, 150), // not ours
        r#"["EVENT","s",{"id":"zz"}]"#.to_owned(),
        r#"["NOTICE","still here"]"#.to_owned(),
        r#"["AUTH","c"]"#.to_owned(),
        r#"["PING"]"#.to_owned(),
        "garbage".to_owned(),
    ];
    for text in useless {
        let mut sub = start();
        sub.on_text(0, &event("s", 1, 150));
        assert_eq!(sub.on_text(900, &text), Step::Continue, "{text}");
        assert_eq!(sub.deadline_ms(), 1_000, "{text}");
        assert_eq!(sub.on_tick(1_000), IDLE, "{text}");
    }
}

#[test]
fn the_total_holds_against_a_drip_of_new_events() {
    let filter = Filter::default();
    let limits = Limits { max_events: 1_000, ..LIMITS };
    let mut sub = Subscription::start("s", filter, limits, 0).0;
    let mut last = Step::Continue;
    for (id, now) in (0_u8..20).zip((900_u64..).step_by(900)) {
        last = sub.on_text(now, &event("s", id, 150));
        if matches!(last, Step::Done(_)) {
            break;
        }
    }
    assert_eq!(last, TOTAL);
    assert_eq!(sub.facts().seen.len(), 11);
}

#[test]
fn an_eose_read_late_is_still_an_answer() {
    let mut sub = start();
    assert_eq!(sub.on_text(50_000, r#"["EOSE","s"]"#), eose());
}

#[test]
fn a_flood_of_strays_ends_without_a_tick() {
    let mut sub = start();
    let steps: Vec<Step> = (0..21).map(|_| sub.on_text(1, r#"["EVENT","t",{}]"#)).collect();
    assert!(steps[..20].iter().all(|step| *step == Step::Continue));
    assert_eq!(steps[20], Step::Done(PageEnd::TooMany));
    let mut sub = start();
    assert_eq!(sub.on_text(1_000, "x"), IDLE);
}

#[test]
fn mismatches_are_counted_and_never_passed_on() {
    let mut sub = start();
    assert_eq!(sub.on_text(1, &event("s", 1, 201)), Step::Continue);
    assert_eq!(sub.on_text(1, &event("s", 2, 99)), Step::Continue);
    assert_eq!((sub.facts().mismatched, sub.facts().seen.len()), (2, 0));
}

#[test]
fn more_events_or_bytes_than_allowed_end_it() {
    let mut sub = start();
    for id in 0..5 {
        assert!(matches!(sub.on_text(1, &event("s", id, 150)), Step::Event(_)));
    }
    assert_eq!(sub.on_text(1, &event("s", 9, 150)), Step::Done(PageEnd::TooMany));
    let mut sub = start();
    assert_eq!(sub.on_text(1, &"x".repeat(100_001)), Step::Done(PageEnd::Oversize));
}

#[test]
fn closed_is_classified() {
    for (message, class) in [
        ("auth-required: x", CloseClass::AuthRequired),
        ("rate-limited: x", CloseClass::RateLimited),
        ("", CloseClass::Error),
    ] {
        let mut sub = start();
        let text = format!(r#"["CLOSED","s","{message}"]"#);
        let end = PageEnd::Closed { class, message: message.to_owned() };
        assert_eq!(sub.on_text(1, &text), Step::Done(end));
    }
}

#[test]
fn a_cut_connection_names_its_kind() {
    for (cut, end) in [
        (Cut::Disconnected, PageEnd::Disconnected),
        (Cut::Oversize, PageEnd::Oversize),
        (Cut::Protocol, PageEnd::Violation),
    ] {
        assert_eq!(start().on_closed(1, cut), Step::Done(end));
    }
}

#[test]
fn auth_then_silence_is_auth_and_auth_then_an_answer_is_the_answer() {
    let mut sub = start();
    assert_eq!(sub.on_text(1, r#"["AUTH","c"]"#), Step::Continue);
    assert!(sub.saw_auth());
    assert_eq!(sub.on_tick(1_000), Step::Done(PageEnd::Auth));
    let mut sub = start();
    sub.on_text(1, r#"["AUTH","c"]"#);
    assert_eq!(sub.on_text(2, r#"["EOSE","s"]"#), eose());
    let mut sub = start();
    sub.on_text(1, r#"["AUTH","c"]"#);
    sub.on_text(2, &event("s", 1, 150));
    assert_eq!(sub.on_tick(1_002), IDLE);
}

#[test]
fn a_greeting_is_no_refusal() {
    let mut sub = start();
    sub.on_text(1, r#"["NOTICE","welcome"]"#);
    assert_eq!(sub.deadline_ms(), 1_000);
    sub.on_text(2, &event("s", 1, 150));
    assert_eq!(sub.on_text(3, r#"["EOSE","s"]"#), eose());
    // nor is it the answer of a relay that holds nothing, or of one that says nothing more
    let mut sub = start();
    sub.on_text(1, r#"["NOTICE","Welcome to our relay!"]"#);
    assert_eq!(sub.on_text(2, r#"["EOSE","s"]"#), eose());
    let mut sub = start();
    sub.on_text(1, r#"["NOTICE","welcome"]"#);
    assert_eq!(sub.on_tick(1_000), IDLE);
}

#[test]
fn a_greeting_on_a_connection_that_has_answered_before_is_none() {
    let mut sub = start().greeted(true);
    sub.on_text(1, r#"["NOTICE","Welcome to our relay!"]"#);
    assert_eq!(sub.on_text(2, r#"["EOSE","s"]"#), notice("Welcome to our relay!"));
    let mut sub = start().greeted(true);
    sub.on_text(1, r#"["NOTICE","Welcome to our relay!"]"#);
    sub.on_text(2, &event("s", 1, 150));
    assert_eq!(sub.on_text(3, r#"["EOSE","s"]"#), eose(), "what comes after it is a page");
}

#[test]
fn a_notice_then_an_empty_eose_or_silence_is_the_notice() {
    let mut sub = start();
    sub.on_text(1, r#"["NOTICE","error: slow"]"#);
    assert_eq!(sub.on_text(2, r#"["EOSE","s"]"#), notice("error: slow"));
    let mut sub = start();
    sub.on_text(1, r#"["NOTICE","some words failed"]"#);
    assert_eq!(sub.on_tick(1_000), notice("some words failed"));
    let mut sub = start();
    sub.on_text(1, &event("s", 1, 150));
    sub.on_text(2, r#"["NOTICE","some words failed"]"#);
    assert_eq!(sub.on_tick(1_001), IDLE, "words after events explain nothing");
}

#[test]
fn a_refusing_notice_shortens_the_wait_and_outlives_small_talk() {
    let limits = Limits { idle_ms: 60_000, total_ms: 90_000, ..LIMITS };
    let mut sub = Subscription::start("s", Filter::default(), limits, 0).0;
    sub.on_text(10, r#"["NOTICE","ERROR: bad req: no kinds"]"#);
    sub.on_text(11, r#"["NOTICE","have a nice day"]"#);
    assert_eq!(sub.deadline_ms(), 10 + NOTICE_GRACE_MS);
    assert_eq!(sub.on_tick(10 + NOTICE_GRACE_MS), notice("ERROR: bad req: no kinds"));
}

#[test]
fn an_event_that_cannot_be_read_takes_a_place_and_proves_nothing_empty() {
    let id = "ab".repeat(32);
    let unread = |field: &str, value: &str| {
        let good = body(9, 150);
        format!(r#"["EVENT","s",{}]"#, good.replace(field, value))
    };
    let table = [
        (unread(r#""kind":1"#, r#""kind":70000"#), Some(150), EventError::Range("kind")),
        (unread(&hex::encode([9; 32]), &id.to_uppercase()), Some(150), EventError::Shape("id")),
        (unread("150", "150.5"), None, EventError::Shape("created_at")),
        (unread("150", "\"150\""), None, EventError::Shape("created_at")),
        (unread("150", "-150"), None, EventError::Range("created_at")),
        (unread(r#""kind":1"#, r#""kind":1,"kind":1"#), None, EventError::Shape("duplicate_key")),
        (unread(r#""content":"""#, "\"content\":\"\u{1}\""), None, EventError::NotJson),
        (r#"["EVENT","s",null]"#.to_owned(), None, EventError::NotJson),
    ];
    for (text, at, why) in table {
        let mut sub = start();
        assert_eq!(taken(&mut sub, 1, &event("s", 2, 180)), body(2, 180));
        assert_eq!(sub.on_text(2, &text), Step::Continue, "{text}");
        assert_eq!(sub.on_text(3, &text), Step::Continue, "a repeat is a stray");
        sub.on_text(4, &event("s", 1, 120));
        assert_eq!(sub.on_text(5, r#"["EOSE","s"]"#), eose());
        let facts = sub.facts();
        let [one] = facts.unread[..] else { panic!("{text}: {facts:?}") };
        assert_eq!((one.after, one.at, one.why), (1, at, why), "{text}");
        let told = text.strip_prefix(r#"["EVENT","s","#).and_then(|rest| rest.strip_suffix(']')).unwrap();
        let span = &text[one.span.0..one.span.1];
        assert!(span == if why == EventError::NotJson { &text } else { told }, "{span}");
        assert_eq!(facts.doubts, [at.map_or((120, 180), |at| (at, at))], "{text}");
        assert_eq!((facts.seen.len(), facts.mismatched, sub.stray()), (2, 0, 1), "{text}");
    }
    let mut foreign = start();
    foreign.on_text(1, &unread(r#""created_at":150,"kind":1"#, r#""created_at":201,"kind":70000"#));
    assert_eq!((foreign.facts().mismatched, foreign.facts().unread.len()), (1, 0));
    foreign.on_text(1, r#"["EVENT","t",null]"#);
    assert!(foreign.facts().is_empty());
}

#[test]
fn events_that_cannot_be_read_neither_feed_the_idle_timer_nor_pass_the_limit() {
    let text = |n: u32| format!(r#"["EVENT","s",{{"created_at":150,"kind":70000,"n":{n}}}]"#);
    let mut sub = start();
    sub.on_text(900, &text(0));
    assert_eq!(sub.on_tick(1_000), IDLE);
    let mut sub = start();
    let steps: Vec<Step> = (0..6).map(|n| sub.on_text(1, &text(n))).collect();
    assert!(steps[..5].iter().all(|step| *step == Step::Continue));
    assert_eq!(steps[5], Step::Done(PageEnd::TooMany));
}
