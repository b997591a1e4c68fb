//! The clock a leader stamps entries with.
//!
//! Last stamp plus this machine's elapsed time: a wall clock set back, or set to
//! next year, moves nothing. Wall time is looked at once, when a leader comes.

use std::{
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// A new leader follows the wall clock forward by at most this much; a longer
/// outage than a day shows as a state clock that lags, which harms nobody.
const MAX_CATCH_UP_MS: u64 = 86_400_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    base: Mutex<Base>,
}

#[derive(Debug)]
struct Base {
    unix_ms: u64,
    boot_ms: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Clock { base: Mutex::new(Base { unix_ms: wall_ms(), boot_ms: boot_ms() }) }
    }

    /// Goes on from the state's clock; called when this replica begins to lead.
    pub(crate) fn rebase(&self, state_ms: u64) {
        let wall = wall_ms();
        let unix_ms =
            if state_ms == 0 { wall } else { wall.clamp(state_ms, state_ms + MAX_CATCH_UP_MS) };
        if wall.abs_diff(unix_ms) > 60_000 {
            tracing::warn!(
                wall_ms = wall,
                state_ms,
                "this machine's clock is far from the cluster's; going on from the cluster's"
            );
        }
        *self.lock() = Base { unix_ms, boot_ms: boot_ms() };
    }

    /// The stamp of an entry, unix time. Never goes back.
    pub(crate) fn now_ms(&self) -> u64 {
        let base = self.lock();
        base.unix_ms + boot_ms().saturating_sub(base.boot_ms)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// CLOCK_BOOTTIME: counts through suspends, is never set.
pub(crate) fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    time.tv_sec() as u64 * 1_000 + time.tv_nsec() as u64 / 1_000_000
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
