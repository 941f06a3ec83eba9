//! What other monitors publish, picked out of events that are being mined anyway.

use crate::db::{Db, DbError, UnminedEvent};
use crate::models::{AddressPolicy, Event, MonitorAnnouncementRow, MonitorReportRow};
use crate::nips::nip66::{ANNOUNCEMENT, DISCOVERY, parse_announcement, parse_report};

/// Reports and announcements, until they are kept.
#[derive(Debug, Default)]
pub struct Heard {
    reports: Vec<MonitorReportRow>,
    announcements: Vec<MonitorAnnouncementRow>,
}

impl Heard {
    /// Takes note of an archived event; most are no such thing and cost a comparison.
    pub fn hear(&mut self, event: &UnminedEvent, policy: &AddressPolicy) {
        let Some(Ok(kind @ (DISCOVERY | ANNOUNCEMENT))) = event.kind.map(u16::try_from) else { return };
        let (Some(pubkey), Some(created_at), Some(tags)) = (&event.pubkey, event.created_at, &event.tags)
        else {
            return;
        };
        let (Ok(monitor), Ok(tags)) = (<[u8; 32]>::try_from(pubkey.as_slice()), std::str::from_utf8(tags))
        else {
            return;
        };
        let Ok(tags) = Event::parse_tags(tags) else { return };
        self.reports.extend(parse_report(kind, monitor, created_at, &tags, policy));
        self.announcements.extend(parse_announcement(kind, monitor, created_at, &tags));
    }

    /// Keeps it; returns how many rows are new or newer. Doing it twice is doing it once.
    ///
    /// # Errors
    /// When the database does not answer; the events are mined again then.
    pub async fn keep(&self, db: &Db) -> Result<u64, DbError> {
        let mut written = 0;
        // In this order: of those who announce themselves, those are kept that report.
        if !self.reports.is_empty() {
            written += db.monitor_report_put(&self.reports).await?;
        }
        if !self.announcements.is_empty() {
            written += db.monitor_announcement_put(&self.announcements).await?;
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_events_only_words_of_monitors_are_heard() {
        let mut heard = Heard::default();
        let policy = AddressPolicy::public();
        for (kind, pubkey, tags) in [
            (30_166, [1; 32].as_slice(), r#"[["d","wss://a.example/"],["rtt-open","5"]]"#),
            (10_166, &[1; 32], r#"[["frequency","3600"]]"#),
            (1, &[1; 32], r#"[["d","wss://a.example/"]]"#),
            (-30_166, &[1; 32], r#"[["d","wss://a.example/"]]"#),
            (30_166, &[1; 31], r#"[["d","wss://a.example/"]]"#),
            (30_166, &[1; 32], r#"[["d",7]]"#),
            (30_166, &[1; 32], "\u{0}"),
        ] {
            let event = UnminedEvent {
                key: 1,
                kind: Some(kind),
                tags: Some(tags.as_bytes().to_vec()),
                content: None,
                pubkey: Some(pubkey.to_vec()),
                created_at: Some(7),
            };
            heard.hear(&event, &policy);
        }
        assert_eq!((heard.reports.len(), heard.announcements.len()), (1, 1));
        assert_eq!((heard.reports[0].rtt_ms[0], heard.announcements[0].frequency_s), (Some(5), Some(3_600)));
    }
}
