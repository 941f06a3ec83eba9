//! The domain's nouns: immutable values with one validating constructor each.
//!
//! No I/O, no clock, no database here; what comes back from outside is validated again.

mod budget;
mod canonical;
mod capability;
mod closed;
mod coverage;
mod event;
mod grade;
mod job;
mod metadata;
mod network;
mod outcome;
mod policy;
mod port;
mod relay_url;
mod report;
mod retention;
mod service_state;
mod source;
mod unkept;

pub use budget::{Fill, NEAR_PERCENT, REST_PERCENT, stricter};
pub use canonical::{DocumentError, MAX_DOCUMENT_BYTES};
pub use capability::{Answer, AuthSeen, By, Claims, MEASURED_NIPS, Measured, Narrowed, Support, Until};
pub use closed::UnknownWord;
pub use coverage::{Coverage, CoverageError, Interval};
pub use event::{
    Authors, EnvelopeFacts, Event, EventError, EventId, KindClass, MAX_EVENT_BYTES, SignedSeed, event_key,
    tag_hash,
};
pub use grade::{GapReason, Grade};
pub use job::{Fence, JobKind, LOCAL, Verdict};
pub use metadata::{Metadata, MetadataError, MetadataType};
pub use network::Network;
pub use outcome::{Outcome, Reason};
pub use policy::{AddressPolicy, IpRange, IpRangeError};
pub use port::{PortError, PortRange, RELAY_PORTS};
pub use relay_url::{MAX_URL_BYTES, RelayUrl, UrlError};
pub use report::{MonitorAnnouncementRow, MonitorReportRow};
pub use retention::{DAYS_MAX, KindRule, KindRuleError, Retention};
pub use service_state::{MAX_STATE_KEY_BYTES, ServiceName, ServiceState, ServiceStateError, StateType};
pub use source::Source;
pub use unkept::{Target, Tombstone, Unkept, authors_said, kinds_said, tombstones};
