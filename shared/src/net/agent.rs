//! How we present ourselves to every server: the `User-Agent` of RFC 9110 §10.1.5, with a place to complain.

/// The project, which answers for the program and not for who runs it.
const PROJECT: &str = "https://github.com/bigbrotr/bigbrotr";
/// The longest contact, bytes: a longer head is cut or refused by somebody.
const CONTACT_BYTES: usize = 128;

/// What requests and handshakes carry as `User-Agent`: name, version, project, and whom to tell of trouble, where the
/// operator says so. `contact` passes [`is_contact`].
pub(super) fn user_agent(contact: Option<&str>) -> String {
    let contact = contact.map(|contact| format!("; {contact}")).unwrap_or_default();
    format!("BigBrotr/{} (+{PROJECT}{contact})", env!("CARGO_PKG_VERSION"))
}

/// Whether a text may stand in a comment of a header as where to reach somebody: a mail address, or an http or https
/// URL without user and password; 128 visible ASCII characters at most, none that ends or quotes the comment.
pub fn is_contact(text: &str) -> bool {
    let fits = text.len() <= CONTACT_BYTES
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"()\\\"<>;,".contains(&byte));
    let web = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let place = match (web, text.split_once('@')) {
        (Some(rest), _) => rest.split(['/', '?', '#']).next(),
        (None, Some((name, domain))) if !name.is_empty() && !name.contains([':', '/']) => Some(domain),
        (None, _) => None,
    };
    let named = |place: &str| {
        !place.starts_with('.') && !place.ends_with('.') && place.contains('.') && !place.contains(['@', '/'])
    };
    fits && place.is_some_and(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_a_mail_address_or_a_web_page_and_ends_no_header() {
        for good in
            ["ops@example.org", "https://example.org", "http://example.org/abuse?of=bigbrotr", "a+b@x.y"]
        {
            assert!(is_contact(good), "{good}");
        }
        let long = format!("https://example.org/{}", "x".repeat(CONTACT_BYTES));
        for bad in [
            "",
            "ops",
            "@example.org",
            "ops@",
            "ops@localhost",
            "a@b@example.org",
            "https://",
            "https://user:password@example.org",
            "ftp://example.org",
            "mailto:ops@example.org",
            "ops@example.org\r\nX-Evil: 1",
            "ops@example.org evil",
            "ops@exämple.org",
            "ops@example.org) (x",
            "https://example.org/\\",
            &long,
        ] {
            assert!(!is_contact(bad), "{bad}");
        }
        assert!(user_agent(None).ends_with(" (+https://github.com/bigbrotr/bigbrotr)"));
        assert!(user_agent(Some("ops@example.org")).ends_with("/bigbrotr; ops@example.org)"));
    }
}
