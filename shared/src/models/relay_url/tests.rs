use proptest::prelude::*;

use super::*;

/// Keys of the right length: Tor v3, I2P, Lokinet.
const O: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const L: &str = "dddddddddddddddddddddddddddddddddddddddddddddddddddd";

fn public(text: &str) -> Result<RelayUrl, UrlError> {
    RelayUrl::parse(text, &AddressPolicy::public())
}

/// Parses, demands `want`, and demands that `want` is canonical.
#[track_caller]
fn becomes(text: &str, want: &str) {
    assert_eq!(public(text).as_ref().map(RelayUrl::as_str), Ok(want), "{text}");
    assert_eq!(RelayUrl::from_db(want, &AddressPolicy::public()).map(|u| u.text), Ok(want.to_owned()));
}

#[track_caller]
fn refused(text: &str, error: UrlError) {
    assert_eq!(public(text).map(|u| u.text), Err(error), "{text}");
}

/// The examples of the original's table that hold as they were.
#[test]
fn the_original_examples_hold() {
    for (text, want) in [
        ("WSS://Relay.Damus.IO", "wss://relay.damus.io"),
        ("  wss://relay.damus.io/  ", "wss://relay.damus.io"),
        ("wss://relay.com:", "wss://relay.com"),
        ("wss://relay.com:00443", "wss://relay.com"),
        ("wss://relay.com/a/../b", "wss://relay.com/b"),
        ("wss://relay.com/../a", "wss://relay.com/a"),
        ("wss://relay.com/a/b/../../c", "wss://relay.com/c"),
        ("wss://relay.com/a%2Fb", "wss://relay.com/a%2Fb"),
        ("wss://8.8.8.8:8080", "wss://8.8.8.8:8080"),
        ("wss://caf\u{e9}.com:8080/inbox", "wss://xn--caf-dma.com:8080/inbox"),
        ("wss://日本.jp", "wss://xn--wgv71a.jp"),
        ("wss://%72elay.com", "wss://relay.com"),
        ("wss://relay%2ecom", "wss://relay.com"),
        ("wss://relay.i2p:80", "ws://relay.i2p"),
    ] {
        becomes(text, want);
    }
    becomes(&format!("wss://{O}.onion/"), &format!("ws://{O}.onion"));
    becomes(&format!("ws://{O}.onion:80"), &format!("ws://{O}.onion"));
    becomes(&format!("ws://{}.ONION", O.to_uppercase()), &format!("ws://{O}.onion"));
    becomes(&format!("ws://sub.{O}.onion"), &format!("ws://sub.{O}.onion"));
    becomes("ws://aaaaaaaaaaaaaaaa.onion", "ws://aaaaaaaaaaaaaaaa.onion");
    becomes(&format!("ws://{B}.b32.i2p"), &format!("ws://{B}.b32.i2p"));
    becomes(&format!("wss://{L}.loki:80/path"), &format!("ws://{L}.loki/path"));
}

#[test]
fn the_original_refusals_hold() {
    for text in ["wss://relay.com:0", "wss://relay.com:65536", "wss://relay.com:abc", "wss://relay.com:+80"] {
        refused(text, UrlError::Port);
    }
    for text in [
        "wss://relay..com",
        "wss://-a.com",
        "wss://foo.123",
        "wss://1.2.3",
        "wss://256.1.1.1",
        "wss://01.2.3.4",
        "wss://relay.com%00",
        "wss://relay.com,wss://other.com",
        "wss://",
        "wss://:80",
        "wss://...",
    ] {
        refused(text, UrlError::Host);
    }
    refused(&format!("wss://{}.com", "a".repeat(64)), UrlError::Host);
    refused("wss://singlehost", UrlError::SingleLabel);
    refused("wss://relay com", UrlError::Blank);
    refused("http://relay.com", UrlError::Scheme);
    for text in ["relay.com", "", "wss:relay.com"] {
        refused(text, UrlError::NotAUrl);
    }
    for ip in ["127.0.0.1", "10.1.1.1", "100.64.0.1", "203.0.113.5", "[::1]", "[fe80::1]", "[::ffff:8.8.8.8]"]
    {
        refused(&format!("wss://{ip}"), UrlError::AddressRefused);
    }
    refused("wss://localhost", UrlError::LocalName);
    for text in ["ws://short.onion", "ws://x.b32.i2p", "ws://foo.loki"] {
        refused(text, UrlError::OverlayHost);
    }
}

/// The examples of the original's table that the design changes.
#[test]
fn where_the_design_departs_from_the_original() {
    for (text, want) in [
        // ws and wss are different relays, each with its own default port.
        ("ws://relay.com", "ws://relay.com"),
        ("ws://relay.com:80", "ws://relay.com"),
        ("ws://relay.com:443", "ws://relay.com:443"),
        ("wss://relay.com:80", "wss://relay.com:80"),
        // The query stays.
        ("wss://relay.com/v1?x=1", "wss://relay.com/v1?x=1"),
        // A path is never dropped.
        ("wss://relay.com/a@b", "wss://relay.com/a@b"),
        ("wss://relay.com/a+b", "wss://relay.com/a+b"),
        ("wss://relay.com/a=b", "wss://relay.com/a=b"),
        ("wss://relay.com/(a)", "wss://relay.com/(a)"),
        ("wss://relay.com/-a", "wss://relay.com/-a"),
        ("wss://relay.com/a-", "wss://relay.com/a-"),
        ("wss://relay.com/~user", "wss://relay.com/~user"),
        ("wss://relay.com/caf\u{e9}", "wss://relay.com/caf%C3%A9"),
        ("wss://relay.com/Caf%C3%A9", "wss://relay.com/Caf%C3%A9"),
        ("wss://relay.com/%2e%2e/x", "wss://relay.com/x"),
        // Percent-encoding has one form.
        ("wss://relay.com/%61bc", "wss://relay.com/abc"),
        // Hosts by UTS-46, which keeps ß.
        ("wss://stra\u{df}e.de", "wss://xn--strae-oqa.de"),
    ] {
        becomes(text, want);
    }
    refused("wss://relay.com/v1?x=1#f", UrlError::Fragment);
    refused("wss://user:pw@relay.com", UrlError::Userinfo);
    for path in ["/%0Awss:/other", "/path%20path", "/%00x"] {
        refused(&format!("wss://relay.com{path}"), UrlError::HiddenBlank);
    }
    refused("wss://relay.com/wss://other", UrlError::NestedUrl);
    for host in ["foo.local", "foo.internal", "foo.localhost", "foo.test"] {
        refused(&format!("wss://{host}"), UrlError::LocalName);
    }
    refused("wss://[2002:808:808::1]", UrlError::AddressRefused);
}

#[test]
fn paths_and_queries_have_one_spelling() {
    for (text, want) in [
        ("wss://relay.com//a///b//", "wss://relay.com/a/b"),
        ("wss://relay.com/./a/.", "wss://relay.com/a"),
        ("wss://relay.com/a/..", "wss://relay.com"),
        ("wss://relay.com/a%2fb%7e", "wss://relay.com/a%2Fb~"),
        ("wss://relay.com/a|b<", "wss://relay.com/a%7Cb%3C"),
        ("wss://relay.com/%ff", "wss://relay.com/%FF"),
        ("wss://relay.com/%2500", "wss://relay.com/%2500"),
        ("wss://relay.com?", "wss://relay.com"),
        ("wss://relay.com/?", "wss://relay.com"),
        ("wss://relay.com?x=1", "wss://relay.com/?x=1"),
        ("wss://relay.com/a/?x=/b//&y=%7e%2f?", "wss://relay.com/a?x=/b//&y=~%2F?"),
        (
            "wss://relay.com/?relays=wss://a.com,wss://b.com",
            "wss://relay.com/?relays=wss://a.com,wss://b.com",
        ),
        ("wss://relay.com/?q=a%20b", "wss://relay.com/?q=a%20b"),
        ("wss://filter.nostr.wine/npub1x?broadcast=true", "wss://filter.nostr.wine/npub1x?broadcast=true"),
        ("wss://relay.com/NoStr", "wss://relay.com/NoStr"),
    ] {
        becomes(text, want);
    }
    for text in ["/%zz", "/%4", "/%", "/a\\b", "/?a%", "/?\\"] {
        refused(&format!("wss://relay.com{text}"), UrlError::Malformed);
    }
    for text in ["/%7f", "/%C2%A0", "/%C2%85", "/%E3%80%80", "/?a=%0A"] {
        refused(&format!("wss://relay.com{text}"), UrlError::HiddenBlank);
    }
    for text in ["/,WSS%3A%2F%2Fb.com", "/wss:/b.com", "/x%3a//b", "/http:/b", "/a/wss:%2F/b/../.."] {
        refused(&format!("wss://relay.com{text}"), UrlError::NestedUrl);
    }
    for text in ["/a b", "/a\u{a0}b", "/?a b", "/a\0", "\n.x"] {
        refused(&format!("wss://relay.com{text}"), UrlError::Blank);
    }
}

#[test]
fn hosts_have_one_spelling() {
    for (text, want) in [
        ("wss://relay.com.", "wss://relay.com"),
        ("wss://re_lay.com", "wss://re_lay.com"),
        ("wss://XN--CAF-DMA.com", "wss://xn--caf-dma.com"),
        ("wss://CAF\u{c9}.com", "wss://xn--caf-dma.com"),
        ("wss://caf%C3%A9.com", "wss://xn--caf-dma.com"),
        ("wss://cafe\u{301}.com", "wss://xn--caf-dma.com"),
        ("wss://relay\u{3002}com", "wss://relay.com"),
        ("wss://\u{ff18}.8.8.8", "wss://8.8.8.8"),
        ("wss://[2606:4700:0:0::1111]:443", "wss://[2606:4700::1111]"),
        ("wss://[2606:4700::1111]:8443/x", "wss://[2606:4700::1111]:8443/x"),
    ] {
        becomes(text, want);
    }
    for text in [
        "wss://xn--a.com",
        "wss://[::1",
        "wss://::1",
        "wss://[1.2.3.4]",
        "wss://[2606:4700::1111%25eth0]",
        "wss://[2606:4700::1111]x",
        "wss://[2606:4700::1111]x:80",
        "wss://relay.com\\@x.com",
        "wss://user%40relay.com",
        "wss://127.0.0.0x1",
        "wss://2130706433",
        "wss://relay.com%2Fpath",
        "wss://%ff.com",
        "wss://a%.com",
    ] {
        assert!(matches!(public(text), Err(UrlError::Host | UrlError::Userinfo)), "{text}");
    }
    refused("wss://\u{ff11}27.0.0.1", UrlError::AddressRefused);
    refused("wss://localhost.localdomain", UrlError::LocalName);
    refused("wss://LOCALHOST.", UrlError::LocalName);
    refused(&format!("wss://{}com", "a.".repeat(126)), UrlError::Host);
    // A Lokinet key in its own alphabet, which has 1, 8 and 9.
    let key = "dw68y1xhptqbhcm5s8aaaip6dbopykagig5q5u1za4c7pzxto77y";
    becomes(&format!("ws://{key}.loki"), &format!("ws://{key}.loki"));
    refused(&format!("ws://sub.{L}.loki"), UrlError::OverlayHost);
    refused(&format!("ws://sub.{B}.b32.i2p"), UrlError::OverlayHost);
}

#[test]
fn the_length_counts_in_canonical_form() {
    let exact = format!("wss://relay.com/{}", "a".repeat(MAX_URL_BYTES - 16));
    assert_eq!(exact.len(), MAX_URL_BYTES);
    becomes(&exact, &exact);
    refused(&format!("{exact}a"), UrlError::TooLong);
    becomes(&format!("{exact}//"), &exact);
    refused(&format!("wss://relay.com/{}", "\u{e9}".repeat(500)), UrlError::TooLong);
    refused(&format!("wss://relay.com/{}", "/".repeat(29_000)), UrlError::TooLong);
}

#[test]
fn a_local_policy_opens_local_names_and_addresses() {
    let local = AddressPolicy::local();
    for text in [
        "ws://localhost:7777",
        "ws://relay:7777",
        "wss://foo.local",
        "ws://foo.internal",
        "ws://127.0.0.1:4848",
        "ws://[::1]:7777",
        "ws://10.1.1.1",
    ] {
        assert_eq!(RelayUrl::parse(text, &local).as_ref().map(RelayUrl::as_str), Ok(text));
    }
    assert_eq!(RelayUrl::parse("ws://169.254.169.254", &local), Err(UrlError::AddressRefused));
    let range = AddressPolicy::public().with_ranges(["10.0.0.0/8".parse().unwrap()]);
    assert!(RelayUrl::parse("ws://10.1.1.1", &range).is_ok());
    assert_eq!(RelayUrl::parse("ws://localhost", &range), Err(UrlError::LocalName));
}

#[test]
fn the_parts_are_those_of_the_text() {
    let url = public("wss://[2606:4700::1111]:8443/a?b=c").unwrap();
    assert_eq!(url.host(), "2606:4700::1111");
    assert_eq!(url.ip(), Some("2606:4700::1111".parse().unwrap()));
    assert_eq!((url.port(), url.is_tls(), url.network()), (8443, true, Network::Clearnet));
    assert_eq!((url.authority().as_str(), url.path_and_query()), ("[2606:4700::1111]:8443", "/a?b=c"));
    assert_eq!(url.to_nip66_d(), "wss://[2606:4700::1111]:8443/a?b=c");
    assert_eq!(url.to_string(), url.as_str());

    let url = public("ws://relay.com").unwrap();
    assert_eq!((url.host(), url.ip(), url.port(), url.is_tls()), ("relay.com", None, 80, false));
    assert_eq!((url.authority().as_str(), url.path_and_query()), ("relay.com", "/"));
    assert_eq!(url.to_nip66_d(), "ws://relay.com/");

    let onion = public(&format!("wss://{O}.onion:443")).unwrap();
    assert_eq!((onion.network(), onion.port(), onion.is_tls()), (Network::Tor, 443, false));
    assert_eq!(public("ws://relay.i2p").map(|u| u.network()), Ok(Network::I2p));
    assert_eq!(public(&format!("ws://{L}.loki")).map(|u| u.network()), Ok(Network::Loki));
}

#[test]
fn a_stored_url_must_be_canonical() {
    let policy = AddressPolicy::public();
    assert_eq!(RelayUrl::from_db("wss://relay.com/", &policy), Err(UrlError::NotCanonical));
    assert_eq!(RelayUrl::from_db("wss://Relay.com", &policy), Err(UrlError::NotCanonical));
    assert_eq!(RelayUrl::from_db("nope", &policy), Err(UrlError::NotAUrl));
}

/// Texts that look like URLs of every kind.
fn url_like() -> impl Strategy<Value = String> {
    let scheme = prop::sample::select(vec!["ws://", "wss://", "WSS://", "http://", "ws:", ""]);
    let host = prop_oneof![
        "[a-zA-Z0-9._%-]{0,12}\\.(com|local|onion|i2p|loki|1)",
        "\\PC{0,8}\\.(com|de|jp)",
        "xn--[a-z0-9-]{0,10}\\.com",
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| format!("[{ip}]")),
        Just(format!("{O}.onion")),
    ];
    let port = "(:[0-9]{0,6})?";
    let tail = "(/([a-zA-Z0-9.~:@!|é/]|%[0-9a-fA-F]{2}|%25[0-9a-f]{2}){0,12}){0,3}(\\?([a-z=&/?~é]|%[0-9a-f]{2}){0,12})?";
    (scheme, host, port, tail).prop_map(|(s, h, p, t)| format!("{s}{h}{p}{t}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn normalising_twice_is_normalising_once(text in url_like(), local in any::<bool>()) {
        let policy = if local { AddressPolicy::local() } else { AddressPolicy::public() };
        if let Ok(url) = RelayUrl::parse(&text, &policy) {
            prop_assert!(url.as_str().is_ascii() && url.as_str().len() <= MAX_URL_BYTES);
            prop_assert_eq!(RelayUrl::from_db(url.as_str(), &policy), Ok(url.clone()));
            // The NIP-66 spelling and the parts lead back to the same relay.
            prop_assert_eq!(RelayUrl::parse(&url.to_nip66_d(), &policy), Ok(url.clone()));
            let scheme = if url.is_tls() { "wss" } else { "ws" };
            let again = format!("{scheme}://{}{}", url.authority(), url.path_and_query());
            prop_assert_eq!(RelayUrl::parse(&again, &policy), Ok(url));
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(text in any::<String>(), rest in "\\PC{0,40}") {
        prop_assert!(public(&text).is_err());
        for text in [format!("wss://{rest}"), format!("wss://a.com/{rest}"), format!("wss://{text}")] {
            if let Ok(url) = public(&text) {
                prop_assert_eq!(RelayUrl::from_db(url.as_str(), &AddressPolicy::public()), Ok(url));
            }
        }
    }
}
