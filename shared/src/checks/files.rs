//! Files in the MaxMind DB format that say where addresses are and whose: mapped, shared, and reopened
//! when an operator replaces them.
//!
//! A file that is missing or broken is a reason to skip a check, and nothing else: the next one is read, and
//! the file is tried again later. Replace a file by renaming another over it: what is mapped then stays whole
//! until its last reader is done, whereas a file changed in place is changed under a reader.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use maxminddb::{LookupResult, MaxMindDbError, Mmap, PathElement, Reader};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::clean;
use crate::clock;
use crate::models::Reason;
use crate::net::DialFailure;

/// How long a file is taken to be the one it was.
const RECHECK_MS: u64 = 10_000;

/// A list of files, the first that knows a thing being believed. Cheap to clone; clones share what is open.
/// Everything it does may wait for a disk.
#[derive(Clone, Default)]
pub struct DataFiles {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    paths: Vec<PathBuf>,
    recheck_ms: u64,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// When they were last compared with the disk; none before the first time.
    checked_ms: Option<u64>,
    files: Vec<Arc<File>>,
}

struct File {
    path: PathBuf,
    identity: Option<Identity>,
    reader: Result<Reader<Mmap>, Fault>,
}

/// What another file under the same name differs in: device, number, size, and time of the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64, u64, (i64, i64));

#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Missing(String),
    Corrupt(String),
}

impl DataFiles {
    /// Opens nothing yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self::rechecked(paths, RECHECK_MS)
    }

    pub(super) fn rechecked(paths: impl IntoIterator<Item = PathBuf>, recheck_ms: u64) -> Self {
        let paths = paths.into_iter().collect();
        Self { shared: Arc::new(Shared { paths, recheck_ms, open: Mutex::default() }) }
    }

    /// Whether no file is named.
    pub fn is_empty(&self) -> bool {
        self.shared.paths.is_empty()
    }

    /// What the files hold of `address`, handed to `read` in the order of the files.
    ///
    /// # Errors
    /// The reason to skip, when none of them holds anything.
    pub(super) fn look<T>(
        &self,
        address: IpAddr,
        read: impl FnOnce(&Records<'_>) -> T,
    ) -> Result<T, DialFailure> {
        if self.is_empty() {
            return Err(DialFailure::new(Reason::DataMissing, "no file is configured"));
        }
        let files = self.current();
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        for file in &files {
            match file.record(address) {
                Ok(Some(record)) => found.push(record),
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        if !found.is_empty() {
            return Ok(read(&Records(found)));
        }
        // A broken file says more than a missing one, and either more than an address nobody knows.
        faults.sort_by_key(|fault| matches!(fault, Fault::Missing(_)));
        Err(match faults.into_iter().next() {
            Some(Fault::Corrupt(why)) => DialFailure::new(Reason::DataCorrupt, why),
            Some(Fault::Missing(why)) => DialFailure::new(Reason::DataMissing, why),
            None => DialFailure::new(Reason::DataNoRecord, format!("no file knows {address}")),
        })
    }

    /// The files as they are now, or were a moment ago.
    fn current(&self) -> Vec<Arc<File>> {
        let Shared { paths, recheck_ms, open } = &*self.shared;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::monotonic_ms();
        if open.checked_ms.is_none_or(|at| now.saturating_sub(at) >= *recheck_ms) {
            let known = std::mem::take(&mut open.files);
            open.files = paths
                .iter()
                .enumerate()
                .map(|(index, path)| match known.get(index) {
                    Some(file) if file.identity == identity(path).ok() => Arc::clone(file),
                    before => Arc::new(File::open(path, before.map(|file| &**file))),
                })
                .collect();
            open.checked_ms = Some(now);
        }
        open.files.clone()
    }
}

impl std::fmt::Debug for DataFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DataFiles").field(&self.shared.paths).finish()
    }
}

impl File {
    fn open(path: &Path, before: Option<&Self>) -> Self {
        let name = path.display();
        let (identity, reader) = match identity(path) {
            Ok(identity) => (Some(identity), map(path)),
            Err(error) => (None, Err(Fault::Missing(format!("{name}: {error}")))),
        };
        // Said when it begins and when it ends, not at every look.
        let fault = reader.as_ref().err();
        match fault {
            Some(Fault::Missing(why) | Fault::Corrupt(why))
                if before.is_none_or(|file| file.reader.as_ref().err() != fault) =>
            {
                tracing::warn!(
                    "a file of the geo or net check cannot be read, the check goes on without it: {why}"
                );
            }
            None => tracing::info!(file.path = %name, "a file of the geo or net check is open"),
            Some(_) => {}
        }
        Self { path: path.to_owned(), identity, reader }
    }

    /// A record that reads whole, or none for an address the file does not know.
    fn record(&self, address: IpAddr) -> Result<Option<LookupResult<'_, Mmap>>, Fault> {
        let reader = self.reader.as_ref().map_err(Clone::clone)?;
        if address.is_ipv6() && reader.metadata().ip_version == 4 {
            return Ok(None);
        }
        let corrupt = |error: MaxMindDbError| Fault::Corrupt(format!("{}: {error}", self.path.display()));
        let found = reader.lookup(address).map_err(corrupt)?;
        let whole = found.decode::<IgnoredAny>().map_err(corrupt)?;
        Ok(whole.map(|_| found))
    }
}

#[expect(unsafe_code, reason = "a file of a hundred megabytes is mapped or it is in memory")]
fn map(path: &Path) -> Result<Reader<Mmap>, Fault> {
    // SAFETY: the reader relies on the file staying as it is while it is mapped. Files are replaced by renaming
    // (module doc, deploy/geo/fetch.sh, OPERATIONS.md), which leaves the mapped one as it is.
    unsafe { Reader::open_mmap(path) }.map_err(|error| {
        let why = format!("{}: {error}", path.display());
        match error {
            MaxMindDbError::Io(error) if error.kind() == ErrorKind::NotFound => Fault::Missing(why),
            _ => Fault::Corrupt(why),
        }
    })
}

fn identity(path: &Path) -> std::io::Result<Identity> {
    let seen = fs::metadata(path)?;
    Ok(Identity(seen.dev(), seen.ino(), seen.size(), (seen.mtime(), seen.mtime_nsec())))
}

/// What the files hold of one address.
pub(super) struct Records<'a>(Vec<LookupResult<'a, Mmap>>);

/// Where in a record a value may be: nested as MaxMind writes it, or flat.
pub(super) type Places<'p> = &'p [&'p [PathElement<'p>]];

impl Records<'_> {
    /// The first text at one of `places`, in the first file that has one; as it may stand in a document.
    pub(super) fn text(&self, places: Places<'_>) -> Option<String> {
        self.first(places, |record, place| record.decode_path::<&str>(place).ok().flatten().and_then(clean))
    }

    /// The first value of this type.
    pub(super) fn value<T: for<'de> Deserialize<'de>>(&self, places: Places<'_>) -> Option<T> {
        self.first(places, |record, place| record.decode_path::<T>(place).ok().flatten())
    }

    /// Latitude and longitude, to four places (11 m): files hold them in four bytes or in eight.
    pub(super) fn position(&self, latitude: Places<'_>, longitude: Places<'_>) -> Option<(f64, f64)> {
        self.0.iter().find_map(|record| {
            let one = |places: Places<'_>| {
                places.iter().find_map(|place| {
                    let double = || record.decode_path::<f64>(place).ok().flatten();
                    let float = || record.decode_path::<f32>(place).ok().flatten().map(f64::from);
                    let text = || record.decode_path::<&str>(place).ok().flatten()?.parse().ok();
                    double().or_else(float).or_else(text)
                })
            };
            let (lat, lon) = (one(latitude)?, one(longitude)?);
            let round = |degrees: f64| (degrees * 1e4).round() / 1e4;
            (lat.abs() <= 90.0 && lon.abs() <= 180.0).then(|| (round(lat), round(lon)))
        })
    }

    /// The network the first record is about.
    pub(super) fn network(&self) -> Option<String> {
        self.0.first().and_then(|record| record.network().ok()).map(|network| network.to_string())
    }

    fn first<'p, T>(
        &self,
        places: Places<'p>,
        read: impl Fn(&LookupResult<'_, Mmap>, &[PathElement<'p>]) -> Option<T>,
    ) -> Option<T> {
        self.0.iter().find_map(|record| places.iter().find_map(|place| read(record, place)))
    }
}
