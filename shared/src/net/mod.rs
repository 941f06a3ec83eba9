//! The only room that opens sockets: every byte to a relay passes [`Dialer`] and its guard.
//!
//! It knows URLs, policies and reasons (`models`), and must not know Nostr, the database or jobs.
//! Invariant: a relay's name is resolved once, every address passes the [`AddressPolicy`], and the
//! connection goes to one of those very addresses; an overlay name never reaches DNS.
//!
//! A remote's behaviour is a value ([`DialFailure`]), never an error of ours; [`NetError`] is only for
//! what an operator configured wrongly.
//!
//! [`AddressPolicy`]: crate::models::AddressPolicy

mod agent;
mod aliases;
mod config;
mod dial;
mod failure;
mod http;
mod proven;
mod resolve;
mod seen;
mod server;
mod socks;
mod stream;
mod tls;
mod traffic;
mod web;
mod ws;
mod zone;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use agent::is_contact;
pub use config::{ADDRESSES_TRIED, Caps, HEADER_BYTES, MESSAGE_BYTES, NetConfig, NetworkConfig};
pub use dial::{Dialer, Target};
pub use failure::{DialFailure, NetError, outcome_of};
pub use http::HttpReply;
pub use resolve::DnsAnswer;
pub use seen::{HttpHead, Seen};
pub use server::{HttpServer, Reply, ask, serve};
pub use stream::Stream;
pub use tls::TlsFacts;
pub use traffic::Traffic;
pub use web::{NoReply, Web, WebFailure, WebReply, check_url};
pub use ws::{Text, WsRead, WsStream};
pub use zone::ZoneFacts;

/// Milliseconds since `start_ms` on the monotonic clock, capped to what a column holds.
pub(crate) fn elapsed_ms(start_ms: u64) -> u32 {
    u32::try_from(crate::clock::monotonic_ms().saturating_sub(start_ms)).unwrap_or(u32::MAX)
}
