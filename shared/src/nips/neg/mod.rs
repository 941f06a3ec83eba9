//! Set reconciliation (NIP-77): [`Comparison`] compares our ids of one window with a relay's, and
//! [`Reconcile`] plans the windows, asks for what is missing, and says what the comparison proves.
//!
//! Both own no socket and no clock. A comparison is a claim of the relay: what it proves is
//! [`Reconcile`]'s to judge.

mod compare;
mod plan;
mod probe;
mod refused;
mod spec;
mod window;

pub use compare::{Comparison, NegEnd, NegLimits, NegStep};
pub use plan::Reconcile;
pub use spec::{Job, ReconcileSpec, Rest, Settlement};

#[cfg(test)]
mod bent;
#[cfg(test)]
mod model_relay;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
