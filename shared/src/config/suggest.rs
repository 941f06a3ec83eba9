//! The nearest right word to a wrong one.

/// Levenshtein distance by characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The candidate nearest to `wrong`, or nothing when even that is another word altogether.
///
/// A right last part in a wrong place counts as near: `page_limit` is `sync.page_limit`.
pub(super) fn nearest(
    wrong: &str,
    separator: char,
    candidates: impl Iterator<Item = String>,
) -> Option<String> {
    let last = |text: &str| text.rsplit(separator).next().unwrap_or_default().to_owned();
    let most = (wrong.chars().count() / 3).max(3);
    candidates
        .map(|candidate| {
            let whole = distance(wrong, &candidate);
            let part = distance(&last(wrong), &last(&candidate)) + 2;
            (whole.min(part), whole, candidate)
        })
        .min()
        .filter(|(near, _, _)| *near <= most)
        .map(|(_, _, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(wrong: &str) -> Option<String> {
        let keys = ["monitor.interval_s", "sync.interval_s", "sync.page_limit", "network.allow"];
        nearest(wrong, '.', keys.iter().map(|key| (*key).to_owned()))
    }

    #[test]
    fn a_slip_of_the_keyboard_leads_to_the_key_that_was_meant() {
        assert_eq!(of("monitor.intervall_s").as_deref(), Some("monitor.interval_s"));
        assert_eq!(of("moniter.interval_s").as_deref(), Some("monitor.interval_s"));
        assert_eq!(of("page_limit").as_deref(), Some("sync.page_limit"));
        assert_eq!(of("network.alow").as_deref(), Some("network.allow"));
        assert_eq!(of("zzzzzzzzzzzzzzzzzzzz"), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
