//! The password that is kept apart from the URL, so that a URL may be shown.

use std::fmt::Write as _;

/// `url` with `password` in its query, percent-encoded, unless it has one.
pub(super) fn with_password(url: &str, password: &str) -> String {
    if has_password(url) {
        return url.to_owned();
    }
    let separator = if url.contains('?') { '&' } else { '?' };
    let mut text = format!("{url}{separator}password=");
    for byte in password.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes any text");
        }
    }
    text
}

fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let user = place.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || query.split('&').any(|pair| pair.starts_with("password="))
}

#[cfg(test)]
mod tests {
    use super::with_password;

    #[test]
    fn a_password_goes_where_there_is_none() {
        assert_eq!(with_password("postgres://u@h/n", "a&b c%"), "postgres://u@h/n?password=a%26b%20c%25");
        assert_eq!(
            with_password("postgres://u@h/n?sslmode=require", "x"),
            "postgres://u@h/n?sslmode=require&password=x"
        );
        for has in ["postgres://u:p@h/n", "postgres://u@h/n?password=p"] {
            assert_eq!(with_password(has, "x"), has);
        }
    }
}
