//! What a look at a relay looks for, and what it needs besides the network.

use std::path::PathBuf;

use super::{CheckKind, DataFiles, Speak};
use crate::net::Target;

/// What one look at a relay does. Cheap to clone; clones share open files.
#[derive(Debug, Clone)]
pub struct Looks {
    /// The checks made, where they apply.
    pub enabled: Vec<CheckKind>,
    /// Whether a certificate that does not verify is accepted all the same; the ssl check says so either way.
    pub insecure_tls: bool,
    /// Files for the geo check.
    pub places: DataFiles,
    /// Files for the net check.
    pub networks: DataFiles,
    /// What is asked beyond reading.
    pub speak: Speak,
}

impl Default for Looks {
    /// Every check that needs no file of an operator's, certificates verified.
    fn default() -> Self {
        Self::with_files(Vec::new(), Vec::new())
    }
}

impl Looks {
    /// Every check; geo and net where there are files to look into.
    pub fn with_files(places: Vec<PathBuf>, networks: Vec<PathBuf>) -> Self {
        let (places, networks) = (DataFiles::new(places), DataFiles::new(networks));
        let mut enabled = CheckKind::ALL.to_vec();
        enabled.retain(|kind| match kind {
            CheckKind::Geo => !places.is_empty(),
            CheckKind::Net => !networks.is_empty(),
            _ => true,
        });
        Self { enabled, insecure_tls: false, places, networks, speak: Speak::default() }
    }

    /// Only these checks.
    #[must_use]
    pub fn only(self, enabled: &[CheckKind]) -> Self {
        Self { enabled: enabled.to_vec(), ..self }
    }

    /// The target as these looks dial it: with any certificate, where the operator wants that.
    #[must_use]
    pub fn target(&self, target: Target) -> Target {
        if self.insecure_tls { target.with_any_certificate() } else { target }
    }

    pub(super) fn wants(&self, kind: CheckKind) -> bool {
        self.enabled.contains(&kind)
    }
}
