//! The only place that reads time or entropy, so that everything else can be driven by a test.
//!
//! Queue times are the database's clock; what is measured on the wire is this one.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[expect(clippy::disallowed_methods, reason = "this room is where time is read")]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Seconds since the Unix epoch; 0 if the machine's clock stands before it.
pub fn unix_now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "this room is where time is read")]
    let now = SystemTime::now();
    let elapsed = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// Milliseconds since this process first asked; never goes backwards.
pub fn monotonic_ms() -> u64 {
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the machine started, those it slept through included: what leases are reckoned by, because the
/// database's clock goes on while a laptop or a virtual machine is suspended, and [`monotonic_ms`] does not.
pub fn boot_ms() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let millis = now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000);
        u64::try_from(millis).unwrap_or(0)
    }
    // Elsewhere the wall clock is what counts on; one that is set costs a lease at most.
    #[cfg(not(target_os = "linux"))]
    {
        u64::try_from(unix_now()).unwrap_or(0) * 1_000
    }
}

/// An unpredictable number.
///
/// # Panics
/// As [`random_hex`].
pub fn random() -> u64 {
    let mut buffer = [0; 8];
    getrandom::fill(&mut buffer).expect("the operating system provides entropy");
    u64::from_ne_bytes(buffer)
}

/// `bytes` unpredictable bytes as lower-case hex.
///
/// # Panics
/// When the operating system gives no entropy: nothing sane can follow.
pub fn random_hex(bytes: usize) -> String {
    let mut buffer = vec![0_u8; bytes];
    getrandom::fill(&mut buffer).expect("the operating system provides entropy");
    hex::encode(buffer)
}
