//! What a probe of a relay found, in words from closed sets.
//!
//! A remote's behaviour is never an error of ours: "down" and "refused" are different facts,
//! and both are results. [`Reason::is_ours`] marks the few reasons that speak of us.

use super::closed::closed_set;

closed_set! {
    /// The coarse result of one check.
    Outcome, "outcome" {
        /// The check saw what it looked for.
        Ok = "ok",
        /// The other side answered, and said no.
        Refused = "refused",
        /// Nobody answered in time.
        Timeout = "timeout",
        /// Something answered that is not what was asked for.
        Invalid = "invalid",
        /// The check was not made, for a reason of ours.
        Skipped = "skipped",
    }
}

closed_set! {
    /// Why a check ended as it did.
    Reason, "reason" {
        /// Nothing to explain: the check succeeded.
        None = "none",
        /// The name does not exist.
        DnsNxdomain = "dns_nxdomain",
        /// The name exists and has no address.
        DnsNoAddress = "dns_no_address",
        /// Our resolver could not answer. Ours.
        DnsFailure = "dns_failure",
        /// An address of the relay is not global: the guard refused to dial.
        AddressRefused = "address_refused",
        /// An address of the relay is in a range that the operator never dials. Ours.
        AddressDenied = "address_denied",
        /// The host refused the TCP connection.
        ConnectRefused = "connect_refused",
        /// The TCP connection was not answered in time.
        ConnectTimeout = "connect_timeout",
        /// The TCP connection failed otherwise.
        ConnectFailed = "connect_failed",
        /// This machine has no route to the address. Ours.
        NoRoute = "no_route",
        /// The network's proxy does not answer. Ours.
        ProxyDead = "proxy_dead",
        /// The proxy answered that it cannot reach the host.
        ProxyRefused = "proxy_refused",
        /// The network has no proxy configured. Ours.
        ProxyMissing = "proxy_missing",
        /// The network is switched off here. Ours.
        NetworkDisabled = "network_disabled",
        /// The certificate's time is over.
        TlsExpired = "tls_expired",
        /// The certificate's time has not come.
        TlsNotYetValid = "tls_not_yet_valid",
        /// The certificate is signed by nobody but itself.
        TlsSelfSigned = "tls_self_signed",
        /// The certificate leads to no authority that we know.
        TlsUnknownIssuer = "tls_unknown_issuer",
        /// The certificate is another host's.
        TlsWrongHost = "tls_wrong_host",
        /// The certificate does not verify for another reason.
        TlsInvalid = "tls_invalid",
        /// The TLS handshake failed otherwise.
        TlsFailed = "tls_failed",
        /// HTTP answered with an unexpected status.
        HttpStatus = "http_status",
        /// The HTTP body is larger than we take.
        HttpBodyTooLarge = "http_body_too_large",
        /// The HTTP body is not of the type asked for.
        HttpContentType = "http_content_type",
        /// The HTTP body is compressed although that was not accepted.
        HttpEncoding = "http_encoding",
        /// The HTTP answer is malformed.
        HttpInvalid = "http_invalid",
        /// The host refused to upgrade to WebSocket.
        WsUpgradeRefused = "ws_upgrade_refused",
        /// The WebSocket stream broke its protocol.
        WsProtocol = "ws_protocol",
        /// The connection ended in the middle.
        Disconnected = "disconnected",
        /// A frame or message larger than we take.
        Oversize = "oversize",
        /// Connected, and then nothing at all, or notices that answer nothing.
        Silent = "silent",
        /// No progress for too long.
        IdleTimeout = "idle_timeout",
        /// The whole took too long.
        TotalTimeout = "total_timeout",
        /// Reading requires NIP-42 authentication.
        AuthRequired = "auth_required",
        /// Reading is restricted to some.
        Restricted = "restricted",
        /// We asked too often.
        RateLimited = "rate_limited",
        /// We are blocked.
        Blocked = "blocked",
        /// The relay does not support the request.
        Unsupported = "unsupported",
        /// The relay calls the request invalid.
        InvalidRequest = "invalid_request",
        /// CLOSED with another reason.
        ClosedError = "closed_error",
        /// NOTICE in answer to the request.
        Notice = "notice",
        /// A WebSocket server that does not speak Nostr.
        NotNostr = "not_nostr",
        /// The document is not JSON.
        NotJson = "not_json",
        /// The document is JSON and not an object.
        NotObject = "not_object",
        /// No file of ours that could tell is there. Ours.
        DataMissing = "data_missing",
        /// A file of ours that could tell cannot be read. Ours.
        DataCorrupt = "data_corrupt",
        /// Our files do not know the address. Ours.
        DataNoRecord = "data_no_record",
        /// More frames than we take for one request.
        TooManyFrames = "too_many_frames",
        /// The relay did not take our event, for another reason.
        WriteRefused = "write_refused",
        /// The relay demands more proof of work than we do.
        PowDemanded = "pow_demanded",
    }
}

impl Reason {
    /// Whether the reason speaks of us and not of the relay: such a job is retried, and says nothing
    /// about the relay's state.
    pub const fn is_ours(self) -> bool {
        matches!(
            self,
            Self::DnsFailure
                | Self::NoRoute
                | Self::ProxyDead
                | Self::ProxyMissing
                | Self::NetworkDisabled
                | Self::AddressDenied
                | Self::DataMissing
                | Self::DataCorrupt
                | Self::DataNoRecord
        )
    }
}
