//! What a look at a relay looks for, and what it needs besides the network.

use super::CheckKind;

/// What one look at a relay does. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Looks {
    /// The checks made, where they apply.
    pub enabled: Vec<CheckKind>,
    /// Whether a certificate that does not verify is accepted all the same; the ssl check says so either way.
    pub insecure_tls: bool,
}

impl Default for Looks {
    /// Every check, certificates verified.
    fn default() -> Self {
        Self { enabled: CheckKind::ALL.to_vec(), insecure_tls: false }
    }
}

impl Looks {
    /// Only these checks.
    pub fn only(enabled: &[CheckKind]) -> Self {
        Self { enabled: enabled.to_vec(), ..Self::default() }
    }

    pub(super) fn wants(&self, kind: CheckKind) -> bool {
        self.enabled.contains(&kind)
    }
}
