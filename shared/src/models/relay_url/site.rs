//! What somebody registers once and can name endless hosts under.
//!
//! Where registering begins is no rule: the list of public suffixes says it, for countries that sell the third level
//! (co.uk), and for hosters that give strangers names under a domain of their own (github.io). A TLD that the list does
//! not have sells the second level.

use psl::Type;

use super::RelayUrl;

impl RelayUrl {
    /// The domain of a clearnet name; none of addresses and overlay names, which nobody registers.
    pub fn site(&self) -> Option<&str> {
        let name = self.registered()?;
        Some(psl::domain_str(name).unwrap_or(name))
    }

    /// The domain of the hoster whose customers have names like this one, its own name included.
    pub fn hoster(&self) -> Option<&str> {
        let name = self.registered()?;
        let suffix = psl::suffix(name.as_bytes())?;
        if suffix.typ() != Some(Type::Private) {
            return None;
        }
        // Such suffixes may stand below one another; the list's own part of the name is the last bytes of it.
        let start = name.len().checked_sub(suffix.as_bytes().len())?;
        name.get(start..)
    }

    fn registered(&self) -> Option<&str> {
        (self.ip.is_none() && !self.network.is_overlay()).then(|| self.host())
    }
}

#[cfg(test)]
mod tests {
    use crate::models::{AddressPolicy, RelayUrl};

    fn belongs(host: &str) -> (Option<String>, Option<String>) {
        let url = RelayUrl::parse(&format!("wss://{host}/inbox"), &AddressPolicy::any()).unwrap();
        (url.site().map(str::to_owned), url.hoster().map(str::to_owned))
    }

    #[test]
    fn what_is_registered_is_told_from_what_is_named_below_it() {
        for (host, site, hoster) in [
            ("example.com", Some("example.com"), None),
            ("a1.b2.example.com", Some("example.com"), None),
            ("a.example.co.uk", Some("example.co.uk"), None),
            ("a.example.me.uk", Some("example.me.uk"), None),
            // Two letters that look like a second level for sale, in a country that sells the second.
            ("a1.go.de", Some("go.de"), None),
            ("a1.or.de", Some("or.de"), None),
            // Every name below is for sale, but for some.
            ("a.b.c.ck", Some("b.c.ck"), None),
            ("a.www.ck", Some("www.ck"), None),
            ("a.shop.xn--55qx5d.cn", Some("shop.xn--55qx5d.cn"), None),
            ("a.shop.公司.cn", Some("shop.xn--55qx5d.cn"), None),
            ("nas.somebody.duckdns.org", Some("somebody.duckdns.org"), Some("duckdns.org")),
            ("somebody.github.io", Some("somebody.github.io"), Some("github.io")),
            // Suffixes themselves are somebody's hosts, too.
            ("duckdns.org", Some("duckdns.org"), Some("duckdns.org")),
            ("co.uk", Some("co.uk"), None),
            // A TLD that nobody has heard of.
            ("a.b.wild.example", Some("wild.example"), None),
            ("8.8.8.8", None, None),
            ("[2001:4860:4860::8888]", None, None),
            ("x.expyuzz4wqqyqhjn.i2p", None, None),
        ] {
            let (found, at) = belongs(host);
            assert_eq!((found.as_deref(), at.as_deref()), (site, hoster), "{host}");
        }
    }
}
