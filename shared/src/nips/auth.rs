//! NIP-42 on one connection: the newest challenge, our one answer, and what the relay said to it.
//!
//! Owns no socket and no clock. We say who we are only to a relay that refuses to answer otherwise, and once per
//! connection: `restricted:` and a refused answer are final.

use super::ask::Reply;
use super::frame::{self, RelayFrame};
use super::keys::Keys;
use super::page::PageEnd;
use super::refusal::{CloseClass, classify};
use crate::models::EventError;

/// The kind of an answer to a challenge.
pub const AUTH_KIND: u16 = 22_242;
/// Longest challenge answered, in bytes: relays send a UUID or some hex.
pub const CHALLENGE_MAX_BYTES: usize = 512;

/// How far it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthState {
    /// No challenge yet.
    Unasked,
    /// A challenge, unanswered.
    Challenged,
    /// Our answer is under way.
    Answered,
    /// The relay took it.
    Accepted,
    /// The relay did not take it, and said this.
    Refused(String),
}

/// NIP-42 on one connection.
#[derive(Debug, Default)]
pub struct Auth {
    challenge: Option<String>,
    answer: Option<String>,
    verdict: Option<Result<(), String>>,
}

impl Auth {
    /// Takes one text message of the connection; all but AUTH and the OK to our answer are passed over.
    pub fn on_text(&mut self, text: &str) {
        // A page is thousands of events: they are told by their first letters, unread.
        let head = &text[..text.floor_char_boundary(16)];
        if !head.contains("\"AUTH\"") && !head.contains("\"OK\"") {
            return;
        }
        match frame::parse(text) {
            Ok(RelayFrame::Auth { challenge })
                if !challenge.is_empty() && challenge.len() <= CHALLENGE_MAX_BYTES =>
            {
                self.challenge = Some(challenge.into_owned());
            }
            Ok(RelayFrame::Ok { id, accepted, message })
                if self.verdict.is_none() && self.answer.as_deref() == Some(&*id) =>
            {
                self.verdict = Some(if accepted { Ok(()) } else { Err(message) });
            }
            _ => {}
        }
    }

    /// The frame that answers the newest challenge; nothing without one, and nothing a second time.
    ///
    /// # Errors
    /// `Range` for a negative time.
    pub fn answer(&mut self, keys: &Keys, relay: &str, now: i64) -> Result<Option<String>, EventError> {
        let (Some(challenge), None) = (&self.challenge, &self.answer) else { return Ok(None) };
        let tag = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
        let tags = vec![tag("relay", relay), tag("challenge", challenge)];
        let event = keys.sign(now, AUTH_KIND, tags, String::new())?;
        self.answer = Some(event.id().to_string());
        Ok(Some(frame::labelled("AUTH", &event)))
    }

    /// How far it went.
    pub fn state(&self) -> AuthState {
        match (&self.verdict, &self.answer, &self.challenge) {
            (Some(Ok(())), ..) => AuthState::Accepted,
            (Some(Err(message)), ..) => AuthState::Refused(message.clone()),
            (None, Some(_), _) => AuthState::Answered,
            (None, None, Some(_)) => AuthState::Challenged,
            (None, None, None) => AuthState::Unasked,
        }
    }
}

/// Whether a page ended so that authenticating may help.
pub fn wants_auth(end: &PageEnd) -> bool {
    match end {
        PageEnd::Auth | PageEnd::Closed { class: CloseClass::AuthRequired, .. } => true,
        PageEnd::Notice { message } => classify(message) == CloseClass::AuthRequired,
        _ => false,
    }
}

/// Whether a request was refused so that authenticating may help.
pub fn wanted_by(reply: &Reply) -> bool {
    match reply {
        Reply::Closed { class, .. } | Reply::Notice { class, .. } => *class == CloseClass::AuthRequired,
        Reply::Ok { accepted: false, message } | Reply::NegErr { message } => {
            classify(message) == CloseClass::AuthRequired
        }
        _ => false,
    }
}

/// The end of a page whose relay did not take our key: what it said is final.
pub fn refused(message: &str) -> PageEnd {
    let class = match classify(message) {
        CloseClass::Error | CloseClass::InvalidRequest | CloseClass::AuthRequired => CloseClass::Restricted,
        other => other,
    };
    PageEnd::Closed { class, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Event;

    const SECRET: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";
    const RELAY: &str = "wss://relay.example";

    fn answered(auth: &mut Auth) -> Event {
        let text = auth.answer(&Keys::parse(SECRET).unwrap(), RELAY, 1_700_000_000).unwrap().unwrap();
        let event = text.strip_prefix(r#"["AUTH","#).unwrap().strip_suffix(']').unwrap();
        Event::parse(event).unwrap()
    }

    fn ok(event: &Event, accepted: bool, message: &str) -> String {
        format!(r#"["OK","{}",{accepted},"{message}"]"#, event.id())
    }

    #[test]
    fn the_newest_challenge_is_answered_once_and_signed() {
        let mut auth = Auth::default();
        assert_eq!(auth.answer(&Keys::parse(SECRET).unwrap(), RELAY, 1).unwrap(), None);
        auth.on_text(r#"["AUTH","old"]"#);
        auth.on_text(r#" [ "AUTH" , "new" ]"#);
        assert_eq!(auth.state(), AuthState::Challenged);
        let event = answered(&mut auth);
        event.verify_signature().unwrap();
        assert_eq!((event.kind(), event.content()), (AUTH_KIND, ""));
        assert_eq!(event.tags(), [["relay", RELAY], ["challenge", "new"]]);
        assert_eq!(auth.state(), AuthState::Answered);
        auth.on_text(r#"["AUTH","newer"]"#);
        assert_eq!(auth.answer(&Keys::parse(SECRET).unwrap(), RELAY, 1).unwrap(), None);
    }

    #[test]
    fn only_the_ok_to_our_answer_counts_and_only_the_first() {
        let mut auth = Auth::default();
        auth.on_text(r#"["AUTH","c"]"#);
        let event = answered(&mut auth);
        auth.on_text(r#"["OK","ab",true,""]"#);
        assert_eq!(auth.state(), AuthState::Answered);
        auth.on_text(&ok(&event, false, "restricted: members only"));
        auth.on_text(&ok(&event, true, ""));
        assert_eq!(auth.state(), AuthState::Refused("restricted: members only".to_owned()));
    }

    #[test]
    fn a_challenge_without_measure_is_none() {
        let mut auth = Auth::default();
        auth.on_text(&format!(r#"["AUTH","{}"]"#, "x".repeat(CHALLENGE_MAX_BYTES + 1)));
        auth.on_text(r#"["AUTH",""]"#);
        auth.on_text(r#"["AUTH",7]"#);
        assert_eq!(auth.state(), AuthState::Unasked);
    }

    #[test]
    fn only_auth_required_asks_for_it() {
        let closed =
            |message: &str| PageEnd::Closed { class: classify(message), message: message.to_owned() };
        let notice = |message: &str| PageEnd::Notice { message: message.to_owned() };
        assert!(wants_auth(&PageEnd::Auth));
        assert!(wants_auth(&closed("auth-required: who are you")));
        assert!(wants_auth(&notice("you must authenticate")));
        for end in [closed("restricted: no"), closed("blocked: no"), PageEnd::Eose { hint: None }] {
            assert!(!wants_auth(&end), "{end:?}");
        }
    }

    #[test]
    fn a_refused_answer_leaves_nothing_to_try() {
        for message in ["restricted: no", "auth-required: again", "error: bad signature", ""] {
            assert!(!wants_auth(&refused(message)), "{message}");
        }
    }
}
