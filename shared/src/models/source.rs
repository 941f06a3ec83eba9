//! Where a relay's URL was seen.

use super::closed::closed_set;

closed_set! {
    /// Where a URL was seen: how much that is worth is for those who read it.
    Source, "candidate source" {
        /// A list given to `seed`, or the shipped one.
        Seed = "seed",
        /// An operator.
        Operator = "operator",
        /// An archived event, by a version that did not say where in it.
        Event = "event",
        /// `r` of a kind 10002: where an author says they read and write.
        RelayList = "relay_list",
        /// A contact list: its content, once a JSON object of relays.
        Contacts = "contacts",
        /// A list or set of relays of another kind, or a recommendation.
        List = "list",
        /// What another monitor reports on.
        Monitor = "monitor",
        /// A relay hint behind an id, an address or a key.
        Hint = "hint",
        /// Any other tag.
        Tag = "tag",
        /// A URL in prose.
        Text = "text",
        /// A NIP-19 text that carries relays.
        Nip19 = "nip19",
        /// The NIP-05 document of a domain.
        Nip05 = "nip05",
        /// A list that an operator configured.
        Http = "http",
    }
}
