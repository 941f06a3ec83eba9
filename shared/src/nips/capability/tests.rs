//! Surveys of relays that are values.

use super::*;
use crate::models::{EventId, Narrowed};
use crate::nips::{Cut, classify};

const NOW: i64 = 1_700_000_000;

/// A relay of so many events, one a second, all older than `NOW`.
#[derive(Clone)]
struct Model {
    events: u32,
    /// `limit` of a filter without.
    default: u32,
    /// What a `limit` above it is clamped to.
    cap: u32,
    /// What a `limit` above the cap brings.
    above: u32,
    exclusive: bool,
    kindless: bool,
    searches: bool,
}

const HONEST: Model = Model {
    events: 5_000,
    default: 500,
    cap: 500,
    above: 500,
    exclusive: false,
    kindless: true,
    searches: false,
};

impl Model {
    fn page(&self, filter: &Filter) -> PageFacts {
        if (filter.kinds.is_empty() && !self.kindless) || (filter.search.is_some() && self.searches) {
            return PageFacts::default();
        }
        let until = filter.until.unwrap_or(NOW);
        let limit = match filter.limit {
            None => self.default,
            Some(limit) if limit > self.cap => self.above,
            Some(limit) => limit,
        };
        let times = (0..i64::from(self.events)).map(|age| NOW - 1 - age);
        let seen = times
            .filter(|at| *at <= until - i64::from(self.exclusive))
            .take(limit as usize)
            .map(|at| (at, EventId([1; 32])));
        PageFacts { seen: seen.collect(), ..PageFacts::default() }
    }

    fn survey(&self, claim: Option<u64>) -> Measured {
        let claimed = Claims { max_limit: claim, ..Claims::default() };
        let read = ReadSeen { newest: (self.events > 0).then_some(NOW - 1), eose: true, hint: None };
        let mut survey = Survey::new(read, Some(&claimed), NOW);
        while let Some(probe) = survey.next_probe() {
            match probe {
                Probe::Ask(Question::Count(_)) => {
                    survey.on_reply(&Reply::Count { count: 1, approximate: false });
                }
                Probe::Ask(_) => survey.on_reply(&Reply::Silent),
                Probe::Page(filter, _) => {
                    survey.on_page(&self.page(&filter), &PageEnd::Eose { hint: None });
                }
            }
        }
        survey.finish(AuthSeen::None)
    }
}

fn limits(measured: &Measured) -> (Option<u32>, Option<u32>, Option<bool>) {
    (measured.default_limit, measured.max_limit, measured.above_brings_less)
}

#[test]
fn limits_are_reported_where_pages_were_cut() {
    let khatru = Model { default: 250, cap: 1_000, above: 250, ..HONEST };
    for (name, model, claim, expected) in [
        ("clamps silently", HONEST, Some(500), (Some(500), Some(500), Some(false))),
        ("claims nothing", HONEST, None, (Some(500), Some(500), Some(false))),
        ("claims more than it gives", HONEST, Some(5_000), (Some(500), Some(500), Some(false))),
        ("a quarter above the cap", khatru.clone(), Some(1_000), (Some(250), Some(500), Some(true))),
        (
            "a quarter above a small cap",
            Model { default: 25, cap: 100, above: 25, ..HONEST },
            Some(100),
            (Some(25), Some(100), Some(true)),
        ),
        (
            "gives more than was asked",
            Model { cap: 9_000, above: 9_000, ..HONEST },
            Some(9_000),
            (Some(500), None, Some(false)),
        ),
        (
            "caps far below its claim",
            Model { default: 100, cap: 100, above: 100, ..HONEST },
            Some(500),
            (Some(100), Some(100), Some(false)),
        ),
        ("holds too little to tell", Model { events: 30, ..HONEST }, Some(500), (None, None, None)),
        ("holds exactly one page", Model { events: 500, ..HONEST }, Some(500), (None, None, None)),
        (
            "reads until as exclusive",
            Model { exclusive: true, ..HONEST },
            Some(500),
            (Some(500), Some(500), Some(false)),
        ),
    ] {
        let measured = model.survey(claim);
        assert_eq!(limits(&measured), expected, "{name}: {measured:?}");
        assert!(measured.requests <= REQUESTS_MAX, "{name}: {measured:?}");
        assert_eq!(measured.ended, Reason::None);
    }
}

#[test]
fn filters_are_judged_by_what_they_change() {
    let measured = HONEST.survey(None);
    assert_eq!((measured.search.seen, measured.without_kinds.seen), (Support::Ignored, Support::Works));
    assert_eq!((measured.until, measured.hint), (Until::Inclusive, Support::Ignored));
    assert_eq!((measured.count.seen, measured.negentropy.seen), (Support::Works, Support::Silent));
    let picky = Model { kindless: false, searches: true, exclusive: true, ..HONEST }.survey(None);
    assert_eq!((picky.search.seen, picky.without_kinds.seen), (Support::Works, Support::Refused));
    assert_eq!(picky.until, Until::Exclusive);
}

#[test]
fn an_empty_relay_is_asked_little_and_accused_of_nothing() {
    let measured = Model { events: 0, ..HONEST }.survey(Some(500));
    assert_eq!((measured.requests, measured.search.seen), (3, Support::Untested));
    assert_eq!((measured.without_kinds.seen, measured.until), (Support::Undecided, Until::Untested));
}

#[test]
fn each_way_to_answer_a_reconciliation_has_its_word() {
    let closed = |text: &str| Reply::Closed { class: classify(text), message: text.to_owned() };
    let notice = |text: &str| Reply::Notice { class: classify(text), message: text.to_owned() };
    for (reply, seen, by) in [
        (Reply::NegMsg { digits: 4 }, Support::Works, By::NegMsg),
        (Reply::NegErr { message: "blocked: too many".into() }, Support::Refused, By::NegErr),
        (closed("unsupported: no"), Support::Refused, By::Closed),
        (notice("unknown envelope label"), Support::Refused, By::Notice),
        (Reply::Eose, Support::Undecided, By::Eose),
        (Reply::Silent, Support::Silent, By::Nothing),
    ] {
        let mut survey = Survey::new(ReadSeen::default(), None, NOW);
        survey.next_probe();
        survey.on_reply(&Reply::Silent);
        survey.next_probe();
        survey.on_reply(&reply);
        assert!(survey.next_probe().is_some(), "{reply:?}");
        let measured = survey.finish(AuthSeen::None);
        assert_eq!((measured.negentropy.seen, measured.negentropy.by), (seen, by), "{reply:?}");
    }
}

#[test]
fn who_has_enough_of_us_is_asked_nothing_more() {
    let closed = |text: &str| Reply::Closed { class: classify(text), message: text.to_owned() };
    for (reply, reason) in [
        (closed("rate-limited: slow down"), Reason::RateLimited),
        (closed("blocked: go away"), Reason::Blocked),
        (Reply::Cut(Cut::Disconnected), Reason::Disconnected),
        (Reply::Flood, Reason::TooManyFrames),
    ] {
        let mut survey = Survey::new(ReadSeen::default(), None, NOW);
        survey.next_probe();
        survey.on_reply(&reply);
        assert!(survey.next_probe().is_none(), "{reply:?}");
        assert_eq!(survey.finish(AuthSeen::None).ended, reason);
    }
}

#[test]
fn who_ignores_until_is_not_paged() {
    let read = ReadSeen { newest: Some(NOW), eose: true, hint: Some(EoseHint::Finish) };
    let mut survey = Survey::new(read, None, NOW);
    let mut pages = 0;
    while let Some(probe) = survey.next_probe() {
        match probe {
            Probe::Ask(_) => survey.on_reply(&Reply::Silent),
            Probe::Page(..) => {
                pages += 1;
                let seen = vec![(NOW, EventId([1; 32]))];
                survey.on_page(
                    &PageFacts { seen, mismatched: 3, ..PageFacts::default() },
                    &PageEnd::Eose { hint: None },
                );
            }
        }
    }
    let measured = survey.finish(AuthSeen::Offered);
    assert_eq!((pages, measured.until, measured.hint), (3, Until::Ignored, Support::Works));
    assert_eq!((measured.max_limit, measured.auth), (None, AuthSeen::Offered));
}

#[test]
fn claims_are_what_the_document_says_of_what_is_measured() {
    let text = r#"{"supported_nips":[1,11,42,50],"negentropy":1,
        "limitation":{"max_limit":500,"min_pow_difficulty":18446744073709551615,"auth_required":true}}"#;
    let claims = claimed(&InfoView::from_json(text).unwrap());
    assert_eq!((claims.nips, claims.max_limit), (vec![42, 50, 77], Some(500)));
    assert_eq!((claims.min_pow_difficulty, claims.auth_required), (None, Some(true)));
}

#[test]
fn only_a_refusal_that_speaks_of_the_filter_makes_a_relay_one_that_wants_kinds() {
    let closed = |message: &str| PageEnd::Closed { class: classify(message), message: message.to_owned() };
    let notice = |message: &str| PageEnd::Notice { message: message.to_owned() };
    for (end, seen) in [
        (closed("invalid: must specify kinds"), Support::Refused),
        (closed("unsupported: filter"), Support::Refused),
        (closed("error: kinds are missing"), Support::Refused),
        (closed("blocked: filters without kinds are not served"), Support::Refused),
        (notice("ERROR: bad req: no kinds"), Support::Refused),
        (closed("error: shutting down"), Support::Undecided),
        (closed("error: too many concurrent REQs"), Support::Undecided),
        (closed("rate-limited: too many filters"), Support::Undecided),
        (closed("auth-required: for this kind"), Support::Undecided),
        (closed("blocked: go away"), Support::Undecided),
        (notice("could not connect to database"), Support::Undecided),
        (PageEnd::Timeout { idle: true }, Support::Silent),
        (PageEnd::Disconnected, Support::Undecided),
    ] {
        let read = ReadSeen { newest: Some(NOW - 1), eose: true, hint: None };
        let mut survey = Survey::new(read, None, NOW);
        while let Some(probe) = survey.next_probe() {
            match probe {
                Probe::Ask(_) => survey.on_reply(&Reply::Silent),
                Probe::Page(filter, _) if filter.kinds.is_empty() => {
                    survey.on_page(&PageFacts::default(), &end);
                }
                Probe::Page(filter, _) => {
                    survey.on_page(&HONEST.page(&filter), &PageEnd::Eose { hint: None });
                }
            }
        }
        assert_eq!(survey.finish(AuthSeen::None).without_kinds.seen, seen, "{end:?}");
    }
}

#[test]
fn a_relay_that_wants_authors_or_mentions_named_is_found_out_in_a_few_requests() {
    let closed = |message: &str| PageEnd::Closed { class: classify(message), message: message.to_owned() };
    let blocked = "blocked: a filter must have authors or #p";
    let (works, refused, untested) = (Support::Works, Support::Refused, Support::Untested);
    for (takes, seen) in [
        (["authors", "#p"], [works, untested, untested]),
        (["#p", "#p"], [refused, works, untested]),
        (["kinds and authors", "#e"], [refused, refused, works]),
        (["#e", "#e"], [refused, refused, refused]),
    ] {
        let mut survey = Survey::new(ReadSeen::default(), None, NOW);
        while let Some(probe) = survey.next_probe() {
            match probe {
                Probe::Ask(_) => {
                    let message = blocked.to_owned();
                    survey.on_reply(&Reply::Closed { class: CloseClass::Blocked, message });
                }
                Probe::Page(filter, _) => {
                    let named = |name: &str| match name {
                        "authors" => !filter.authors.is_empty(),
                        "#p" => !filter.mentioned.is_empty(),
                        "kinds and authors" => !filter.kinds.is_empty() && !filter.authors.is_empty(),
                        _ => false,
                    };
                    let taken = takes.iter().any(|name| named(name));
                    let end = if taken { PageEnd::Eose { hint: None } } else { closed(blocked) };
                    survey.on_page(&PageFacts::default(), &end);
                }
            }
        }
        let measured = survey.finish(AuthSeen::None);
        assert_eq!(
            (measured.without_kinds.seen, measured.with_kinds.seen),
            (Support::Refused, Support::Refused)
        );
        let Measured { with_authors, with_mentions, with_kinds_authors, .. } = &measured;
        assert_eq!([with_authors.seen, with_mentions.seen, with_kinds_authors.seen], seen);
        let together = seen == [refused, refused, works];
        assert_eq!(measured.narrowed() == Some(Narrowed::KindsAuthors), together, "{measured:?}");
        assert!(measured.requests <= REQUESTS_MAX && measured.ended == Reason::None, "{measured:?}");
    }
}

#[test]
fn who_is_not_authorized_has_said_nothing_of_filters() {
    assert!(!speaks_of_filter("blocked: you are not authorized"));
    assert!(speaks_of_filter("error: query must include authors"));
}
