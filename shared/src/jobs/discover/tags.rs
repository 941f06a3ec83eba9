//! The elements of an event's tags, walked in their JSON without building it.
//!
//! The text is what we stored ourselves, and is treated like any other: what is no list of lists of strings
//! ends the walk.

use std::borrow::Cow;

/// One element of a tag behind its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element<'a> {
    /// The tag's name, as written.
    pub(super) name: &'a [u8],
    /// Position in the tag, from 1.
    pub(super) index: usize,
    raw: &'a [u8],
}

impl Element<'_> {
    /// The element as written: escapes and all.
    pub(super) const fn raw(&self) -> &[u8] {
        self.raw
    }

    /// The element as meant; none when its escapes are wrong.
    pub(super) fn text(&self) -> Option<Cow<'_, str>> {
        if !self.raw.contains(&b'\\') {
            return std::str::from_utf8(self.raw).ok().map(Cow::Borrowed);
        }
        let quoted = [b"\"", self.raw, b"\""].concat();
        serde_json::from_slice::<String>(&quoted).ok().map(Cow::Owned)
    }
}

/// Calls `each` for every element behind the names; it says whether to go on.
pub(super) fn walk<'a>(json: &'a [u8], mut each: impl FnMut(Element<'a>) -> bool) {
    let (mut depth, mut index, mut at) = (0_u32, 0_usize, 0_usize);
    let mut name: &[u8] = &[];
    while let Some(byte) = json.get(at) {
        match byte {
            b'[' => {
                depth += 1;
                index = 0;
                name = &[];
            }
            b']' => depth = depth.saturating_sub(1),
            b',' if depth == 2 => index += 1,
            b'"' => {
                let Some(end) = end_of_string(json, at + 1) else { return };
                let raw = &json[at + 1..end];
                if depth == 2 && index == 0 {
                    name = raw;
                } else if depth == 2 && !each(Element { name, index, raw }) {
                    return;
                }
                at = end;
            }
            b',' | b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => return,
        }
        at += 1;
    }
}

/// Where the closing quote is.
fn end_of_string(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match json.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn elements(json: &str) -> Vec<(String, usize, Option<String>)> {
        let mut found = Vec::new();
        walk(json.as_bytes(), |element| {
            let name = String::from_utf8_lossy(element.name).into_owned();
            found.push((name, element.index, element.text().map(Cow::into_owned)));
            true
        });
        found
    }

    #[test]
    fn names_and_indexes_are_those_of_the_tags() {
        let json = r#"[["e","id","wss://a"],[],["x"],["relays", "a\"b\u0000c", "]["]]"#;
        let wanted = [("e", 1, "id"), ("e", 2, "wss://a"), ("relays", 1, "a\"b\0c"), ("relays", 2, "][")];
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, index, text)| ((*name).to_owned(), *index, Some((*text).to_owned())))
            .collect();
        assert_eq!(elements(json), wanted);
    }

    #[test]
    fn what_is_no_list_of_lists_ends_the_walk_quietly() {
        for json in
            ["", "x", "{}", r#"[["a","b"#, r#"[["a",1,"b"]]"#, r#"["a","b"]"#, r#"[[["a","b"]]]"#, "\"\\"]
        {
            assert!(elements(json).is_empty(), "{json}: {:?}", elements(json));
        }
    }

    proptest! {
        #[test]
        fn any_tags_are_walked_as_serde_reads_them(tags in proptest::collection::vec(proptest::collection::vec(".{0,8}", 0..4), 0..5)) {
            let json = serde_json::to_string(&tags).unwrap();
            let wanted: Vec<_> = tags
                .iter()
                .flat_map(|tag| tag.iter().enumerate().skip(1).map(|(index, text)| (index, Some(text.clone()))))
                .collect();
            let found: Vec<_> = elements(&json).into_iter().map(|(_, index, text)| (index, text)).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn no_bytes_panic(json in proptest::collection::vec(any::<u8>(), 0..60)) {
            walk(&json, |element| { element.text(); true });
        }
    }
}
