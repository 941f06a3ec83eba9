//! How well a stretch of time on a relay is known, and why it is not known better.

use super::closed::closed_set;

closed_set! {
    /// What is known of a stretch of `created_at` on one relay, ascending in worth.
    Grade, "coverage grade" {
        /// Nothing was asked yet.
        Unknown = "unknown",
        /// The relay would not answer for it.
        Refused = "refused",
        /// Some of it arrived; that it is all is not proved.
        Partial = "partial",
        /// Paged through to its lower end, every page ending in EOSE.
        Walked = "walked",
        /// The relay said that nothing more matches (NIP-67 `finish`).
        Finished = "finished",
        /// Both sides' sets were compared (NIP-77).
        Reconciled = "reconciled",
    }
}

impl Grade {
    /// Whether the grade proves that nothing the relay serves is missing.
    pub const fn is_proof(self) -> bool {
        matches!(self, Self::Walked | Self::Finished | Self::Reconciled)
    }
}

closed_set! {
    /// Why a stretch of time is not proved.
    GapReason, "gap reason" {
        /// Nothing to explain.
        None = "none",
        /// No answer, or no progress, in time.
        Timeout = "timeout",
        /// The connection ended in the middle.
        Disconnected = "disconnected",
        /// The relay closed the subscription with a reason of no other class.
        Closed = "closed",
        /// Reading requires NIP-42 authentication.
        AuthRequired = "auth_required",
        /// Reading is restricted to some.
        Restricted = "restricted",
        /// We asked too often.
        RateLimited = "rate_limited",
        /// A frame, or the whole answer, is larger than we take.
        Oversize = "oversize",
        /// More events in one second than the relay gives in a page, and no way to split it.
        DenseSecond = "dense_second",
        /// The relay does not answer newest first.
        Unordered = "unordered",
        /// The relay sends what was not asked for.
        IgnoresFilter = "ignores_filter",
        /// The relay claims events that it does not hand out.
        NotServed = "not_served",
        /// We stopped: a budget of ours, a drain.
        Stopped = "stopped",
        /// A row that the database would not take lies in it.
        Quarantined = "quarantined",
        /// The relay broke the protocol.
        Protocol = "protocol",
        /// What was known was dropped by age, and is not asked for again (set by the database, below a horizon).
        Retired = "retired",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grades_rise_in_worth_and_proof_begins_at_walked() {
        assert!(Grade::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        for grade in Grade::ALL {
            assert_eq!(grade.is_proof(), *grade >= Grade::Walked, "{grade}");
        }
    }

    #[test]
    fn every_word_reads_back() {
        for grade in Grade::ALL {
            assert_eq!(grade.as_str().parse(), Ok(*grade));
        }
        for reason in GapReason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert!("Walked".parse::<Grade>().is_err());
    }
}
