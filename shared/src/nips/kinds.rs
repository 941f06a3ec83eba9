//! Which of a list of kinds a relay lets itself be asked for that refuses the list: found out by small requests.
//!
//! A list that is refused is asked for in parts, the parts that are refused in parts of theirs, down to single kinds. Then
//! all that were answered are asked for in one list, and where that is refused as well, for its length, the longest
//! beginning of it is looked for that is not. Knows no socket, no clock and no database: [`KindSearch::next`] says which
//! kinds to name, [`KindSearch::on_answer`] takes what came. Invariants: what is found was answered as one list; it ends
//! after at most [`REQUESTS_MAX`] requests; an answer that is neither yes nor no ends it with nothing found.

use super::capability::speaks_of_filter;
use super::page::{PageEnd, PageFacts};

/// Most requests of one search: a list of 60 kinds, the longest that is asked for, takes 87.
pub const REQUESTS_MAX: u32 = 96;
/// Into so many parts a list is cut. Two would take up to 118 requests for 60 kinds, and save none where few are refused.
const PARTS: usize = 4;

/// A search under way.
#[derive(Debug)]
pub struct KindSearch {
    /// Lists not asked for yet, the next one last.
    open: Vec<Vec<u16>>,
    /// Answered, each in some list.
    found: Vec<u16>,
    /// The longest beginning of `found` that is answered, and the shortest that is refused; set when all lists are asked.
    bounds: Option<(usize, usize)>,
    broken: bool,
    requests: u32,
}

/// What an answer says of the kinds that were named.
enum Verdict {
    Taken,
    Refused,
    Nothing,
}

impl KindSearch {
    /// A search among these, which are refused as one list.
    pub fn new(mut kinds: Vec<u16>) -> Self {
        kinds.sort_unstable();
        kinds.dedup();
        let mut search =
            Self { open: Vec::new(), found: Vec::new(), bounds: None, broken: false, requests: 0 };
        search.open_parts(&kinds);
        search.settle();
        search
    }

    /// The kinds to name in the next request; nothing when it is over.
    #[expect(clippy::should_implement_trait, reason = "it is driven by its answers, it is no iterator")]
    pub fn next(&mut self) -> Option<Vec<u16>> {
        if self.broken {
            return None;
        }
        let list = match self.bounds {
            None => self.open.last()?.clone(),
            Some((taken, refused)) if taken + 1 < refused => {
                self.found[..self.length(taken, refused)].to_vec()
            }
            Some(_) => return None,
        };
        if self.requests == REQUESTS_MAX {
            self.broken = true;
            return None;
        }
        self.requests += 1;
        Some(list)
    }

    /// Takes the answer to it.
    pub fn on_answer(&mut self, facts: &PageFacts, end: &PageEnd) {
        let verdict = verdict(facts, end);
        if matches!(verdict, Verdict::Nothing) {
            self.broken = true;
            return;
        }
        let taken = matches!(verdict, Verdict::Taken);
        if let Some((most, least)) = self.bounds {
            let length = self.length(most, least);
            self.bounds = Some(if taken { (length, least) } else { (most, length) });
            return;
        }
        let Some(list) = self.open.pop() else { return };
        if taken {
            self.found.extend(list);
        } else {
            self.open_parts(&list);
        }
        self.settle();
    }

    /// What the relay answers for in one list, ascending; none of them: empty. `None`: it broke off.
    pub fn found(&self) -> Option<&[u16]> {
        match self.bounds {
            Some((taken, refused)) if !self.broken && taken + 1 >= refused => Some(&self.found[..taken]),
            _ => None,
        }
    }

    /// How much of what was found to ask for next: first all of it.
    const fn length(&self, taken: usize, refused: usize) -> usize {
        if refused > self.found.len() { self.found.len() } else { taken.midpoint(refused) }
    }

    fn open_parts(&mut self, list: &[u16]) {
        // A single kind that is refused has no parts.
        if list.len() > 1 {
            let parts = list.chunks(list.len().div_ceil(PARTS)).rev();
            self.open.extend(parts.map(<[u16]>::to_vec));
        }
    }

    fn settle(&mut self) {
        if self.open.is_empty() {
            self.bounds = Some((0, self.found.len() + 1));
        }
    }
}

/// Whether a request was refused for what it asks for.
pub fn refuses_filter(facts: &PageFacts, end: &PageEnd) -> bool {
    matches!(verdict(facts, end), Verdict::Refused)
}

fn verdict(facts: &PageFacts, end: &PageEnd) -> Verdict {
    match end {
        _ if !facts.is_empty() => Verdict::Taken,
        PageEnd::Eose { .. } => Verdict::Taken,
        PageEnd::Closed { message, .. } | PageEnd::Notice { message } if speaks_of_filter(message) => {
            Verdict::Refused
        }
        _ => Verdict::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::nips::{CloseClass, classify};

    /// A relay that takes only lists of these kinds, and none longer than so many.
    struct Model {
        allowed: BTreeSet<u16>,
        most: usize,
    }

    impl Model {
        fn takes(&self, list: &[u16]) -> bool {
            list.len() <= self.most && list.iter().all(|kind| self.allowed.contains(kind))
        }

        fn answer(&self, list: &[u16]) -> PageEnd {
            if self.takes(list) { PageEnd::Eose { hint: None } } else { closed("blocked: kind not allowed") }
        }
    }

    fn closed(message: &str) -> PageEnd {
        PageEnd::Closed { class: classify(message), message: message.to_owned() }
    }

    /// All requests, and what was found; from this request on (from 0) it answers so.
    fn search(model: &Model, kinds: &[u16], breaks: Option<(usize, &PageEnd)>) -> (usize, Option<Vec<u16>>) {
        let mut search = KindSearch::new(kinds.to_vec());
        let mut asked = 0;
        while let Some(list) = search.next() {
            assert!(!list.is_empty() && list.is_sorted(), "{list:?}");
            let end = match breaks {
                Some((at, end)) if asked >= at => end.clone(),
                _ => model.answer(&list),
            };
            asked += 1;
            search.on_answer(&PageFacts::default(), &end);
        }
        (asked, search.found().map(<[u16]>::to_vec))
    }

    #[test]
    fn two_kinds_of_sixty_are_found_within_the_bound() {
        let kinds: Vec<u16> = (0..60).collect();
        let model = Model { allowed: BTreeSet::from([1, 7]), most: 60 };
        let (asked, found) = search(&model, &kinds, None);
        assert_eq!((asked, found), (81, Some(vec![1, 7])));
        // The worst: every kind alone, and each list of more refused.
        let alone = Model { allowed: (0..60).collect(), most: 1 };
        assert_eq!(search(&alone, &kinds, None), (87, Some(vec![0])));
    }

    #[test]
    fn a_list_without_end_is_given_up() {
        let kinds: Vec<u16> = (0..5_000).collect();
        let model = Model { allowed: BTreeSet::new(), most: 0 };
        assert_eq!(search(&model, &kinds, None), (REQUESTS_MAX as usize, None));
    }

    #[test]
    fn one_kind_that_is_refused_has_nothing_in_it() {
        let model = Model { allowed: BTreeSet::new(), most: 0 };
        assert_eq!(search(&model, &[1], None), (0, Some(vec![])));
        assert_eq!(search(&model, &[], None), (0, Some(vec![])));
    }

    #[test]
    fn what_is_no_word_about_the_filter_ends_it_with_nothing() {
        let kinds: Vec<u16> = (0..20).collect();
        let model = Model { allowed: BTreeSet::from([3, 4]), most: 20 };
        let (whole, _) = search(&model, &kinds, None);
        for end in [
            PageEnd::Timeout { idle: true },
            PageEnd::Disconnected,
            PageEnd::Auth,
            PageEnd::TooMany,
            closed("rate-limited: slow down"),
            closed("auth-required: for this kind"),
            closed("error: shutting down"),
            PageEnd::Notice { message: "too many concurrent REQs".into() },
        ] {
            assert!(!refuses_filter(&PageFacts::default(), &end), "{end:?}");
            for at in 0..whole {
                assert_eq!(search(&model, &kinds, Some((at, &end))), (at + 1, None), "{end:?}");
            }
        }
        let notice = PageEnd::Notice { message: "ERROR: bad req: kind not allowed: 4".into() };
        assert!(refuses_filter(&PageFacts::default(), &notice));
        assert!(refuses_filter(
            &PageFacts::default(),
            &closed("ERROR: bad req: too many kinds in filter: 60")
        ));
    }

    #[test]
    fn who_sends_an_event_has_answered_however_the_page_ends() {
        let facts = PageFacts { seen: vec![(5, crate::models::EventId([1; 32]))], ..PageFacts::default() };
        let end = PageEnd::Closed { class: CloseClass::InvalidRequest, message: "invalid: filter".into() };
        assert!(!refuses_filter(&facts, &end) && refuses_filter(&PageFacts::default(), &end));
    }

    proptest! {
        #[test]
        fn every_allowed_kind_is_found(
            kinds in prop::collection::btree_set(0_u16..200, 0..=60), allowed in prop::collection::btree_set(0_u16..200, 0..200),
        ) {
            let list: Vec<u16> = kinds.iter().copied().collect();
            prop_assume!(!kinds.is_subset(&allowed));
            let (asked, found) = search(&Model { allowed: allowed.clone(), most: 200 }, &list, None);
            prop_assert_eq!(found, Some(kinds.intersection(&allowed).copied().collect::<Vec<u16>>()));
            prop_assert!(asked <= 81);
        }

        #[test]
        fn as_many_are_found_as_the_relay_takes_in_one_list(
            kinds in prop::collection::btree_set(0_u16..200, 0..=60), allowed in prop::collection::btree_set(0_u16..200, 0..200),
            most in 1_usize..60,
        ) {
            let list: Vec<u16> = kinds.iter().copied().collect();
            let model = Model { allowed: allowed.clone(), most };
            prop_assume!(!model.takes(&list));
            let (asked, found) = search(&model, &list, None);
            prop_assert_eq!(found, Some(kinds.intersection(&allowed).copied().take(most).collect::<Vec<u16>>()));
            prop_assert!(asked <= 87);
        }
    }
}
