//! The clock a leader stamps entries with.
//!
//! Last stamp plus this machine's elapsed time: a wall clock set back, or set to
//! next year, moves nothing. Wall time is looked at only when a leader comes that has not
//! followed the one before.

use std::{
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use rowen_raft::sim::Process;

/// A new leader follows the wall clock forward by at most this much; a longer
/// outage than a day shows as a state clock that lags, which harms nobody.
const MAX_CATCH_UP_MS: u64 = 86_400_000;

/// How long a follower must have seen the state's clock go at its own pace to go on from it.
const FOLLOWED_MS: u64 = 3_000;
/// How much a step of the state's clock may differ from the time that went by here: what an entry
/// takes to come through.
const STEP_MS: u64 = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    base: Mutex<Option<Base>>,
}

#[derive(Clone, Copy, Debug)]
struct Base {
    unix_ms: u64,
    boot_ms: u64,
}

impl Clock {
    /// Goes on from the state's clock; called when this replica begins to lead. `lived` is what
    /// the clock must show if the replica followed the one before: wall time has no say then.
    pub(crate) fn start(&self, state_ms: u64, lived: Option<u64>) {
        let wall = wall_ms();
        let unix_ms = match lived {
            _ if state_ms == 0 => wall,
            Some(lived_ms) => lived_ms.max(state_ms),
            None => wall.clamp(state_ms, state_ms + MAX_CATCH_UP_MS),
        };
        if wall.abs_diff(unix_ms) > 60_000 {
            tracing::warn!(
                wall_ms = wall,
                state_ms,
                "this machine's clock is far from the cluster's; going on from the cluster's"
            );
        }
        *self.lock() = Some(Base { unix_ms, boot_ms: boot_ms() });
    }

    /// This replica leads no more: it stamps nothing.
    pub(crate) fn stop(&self) {
        *self.lock() = None;
    }

    /// The stamp of an entry, unix time; only a leader has one. Never goes back.
    pub(crate) fn now_ms(&self) -> Option<u64> {
        let base = *self.lock();
        base.map(|base| base.unix_ms + boot_ms().saturating_sub(base.boot_ms))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Base>> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the state's clock has been going, and what it must show now: this machine's
/// wall clock may be wrong, the time that went by here is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// Since when, on the boot clock, it has gone at this machine's pace.
    since_boot_ms: u64,
    state_ms: u64,
    boot_ms: u64,
}

impl Pace {
    /// The state shows `state_ms`.
    pub(crate) fn saw(&mut self, state_ms: u64, boot_ms: u64) {
        if state_ms <= self.state_ms {
            return;
        }
        let (step_ms, here_ms) = (state_ms - self.state_ms, boot_ms.saturating_sub(self.boot_ms));
        if step_ms.abs_diff(here_ms) > STEP_MS {
            self.since_boot_ms = boot_ms; // old entries, or a jump
        }
        (self.state_ms, self.boot_ms) = (state_ms, boot_ms);
    }

    /// This replica led until now and stamped `now_ms` itself.
    pub(crate) fn led(&mut self, now_ms: Option<u64>, boot_ms: u64) {
        let Some(now_ms) = now_ms else { return };
        *self =
            Pace { since_boot_ms: boot_ms.saturating_sub(FOLLOWED_MS), state_ms: now_ms, boot_ms };
    }

    /// What it must show at `boot_ms`; `None` where this replica has not seen it going.
    pub(crate) fn expect(&self, boot_ms: u64) -> Option<u64> {
        let going = self.boot_ms.saturating_sub(self.since_boot_ms) >= FOLLOWED_MS;
        going.then(|| self.state_ms + boot_ms.saturating_sub(self.boot_ms))
    }
}

/// CLOCK_BOOTTIME: counts through suspends, is never set.
pub(crate) fn boot_ms() -> u64 {
    if let Some(process) = Process::current() {
        return process.clock().boot_ms();
    }
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    time.tv_sec() as u64 * 1_000 + time.tv_nsec() as u64 / 1_000_000
}

fn wall_ms() -> u64 {
    if let Some(process) = Process::current() {
        return process.clock().wall_ms();
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_followed_a_clock_goes_on_from_it() {
        let mut pace = Pace::default();
        for old in 0..1_000 {
            pace.saw(1_000_000 + old * 1_000, 50_000 + old); // a log that is caught up with
        }
        assert_eq!(pace.expect(60_000), None, "nobody knows how old the last entry is");
        for second in 1..=5 {
            pace.saw(9_000_000 + second * 1_000, 60_000 + second * 1_010);
        }
        assert_eq!(pace.expect(65_050 + 2_500), Some(9_005_000 + 2_500));
    }

    #[test]
    fn only_a_leader_has_a_stamp_and_what_was_followed_beats_wall_time() {
        let clock = Clock::default();
        assert_eq!(clock.now_ms(), None);
        clock.start(5_000, Some(7_000));
        assert!((7_000..8_000).contains(&clock.now_ms().unwrap()));
        clock.start(5_000, None);
        assert!(clock.now_ms().unwrap() >= 5_000 + MAX_CATCH_UP_MS, "wall time is far ahead");
        clock.stop();
        assert_eq!(clock.now_ms(), None);
    }
}
