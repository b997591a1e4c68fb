//! Bugs planted on purpose: each is one of the mistakes that Rowen's invariants are
//! there for, and `cargo xtask chaos planted` shows that the checks catch it.
//!
//! Owns their names and the choice of one. It exists only in a build with
//! `--cfg rowen_planted`: in every other one [`planted`] is the constant `false`,
//! and what stands behind it is not compiled into the binary.

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident $name:literal,)*) => {
        /// A mistake that somebody could make.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Bug] = &[$(Bug::$bug,)*];

            /// As `--only` takes it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)*
                }
            }
        }
    };
}

bugs! {
    /// Apply takes a plan's word for it that GPUs are free.
    SkipRecheck "skip_recheck",
    /// GPUs held for a gang count as free.
    HoldIgnored "hold_ignored",
    /// The agent launches on GPUs where a process still lives.
    LaunchOnBusy "launch_on_busy",
    /// The agent obeys whatever comes last: no epoch, no generation.
    DropEpochCheck "drop_epoch_check",
    /// A silent node is lost when its lease is over, without notice, kill time and drift.
    NoMargin "no_margin",
    /// Reports are taken over whatever epoch they carry.
    AnyEpochReports "any_epoch_reports",
    /// A gang starts without its last worker.
    PartialGang "partial_gang",
    /// One worker failed, the others go on.
    GangLeftRunning "gang_left_running",
    /// A cancel of a job that is stopping anyway is answered and forgotten.
    CancelForgotten "cancel_forgotten",
    /// An agent that comes again puts its node back in service.
    DrainForgotten "drain_forgotten",
    /// Whatever a node's agent says of a lost task, the job failed by itself.
    LostIsFailed "lost_is_failed",
    /// A retried request is carried out again.
    DedupForgets "dedup_forgets",
    /// An agent that restarts knows nothing of tasks that have ended.
    RestartForgetsExits "restart_forgets_exits",
    /// A job that ended is queued again by a late report.
    EndedRunsAgain "ended_runs_again",
    /// Evicted fillers are killed at once.
    EvictionWithoutNotice "eviction_without_notice",
    /// The agent counts a task as gone when it has told its shim to end it.
    ExitToldEarly "exit_told_early",
    /// The time of a released task is booked twice.
    UsageTwice "usage_twice",
    /// A meter that changes its class forgets the time before.
    MeterGap "meter_gap",
    /// Apply walks over allocations in hash order.
    HashOrder "hash_order",
    /// A snapshot leaves out booked usage.
    SnapshotMissesTable "snapshot_misses_table",
    /// A snapshot leaves out the answers to requests, and its hash does not tell.
    SnapshotMissesRequests "snapshot_misses_requests",
    /// A cancelled job is said to have ended when it is still to be stopped.
    RefusedButDone "refused_but_done",
    /// The agent never forgets a task that is over.
    ExitsPileUp "exits_pile_up",
    /// Reports of lost tasks are dropped.
    LostReportsDropped "lost_reports_dropped",
    /// A node that restarted keeps its tasks in the state.
    RebootIgnored "reboot_ignored",
    /// The log says that a batch is on disk before it was synced.
    AckBeforeSync "ack_before_sync",
    /// A vote is told before it is on disk.
    VoteNotSynced "vote_not_synced",
    /// A damaged record in the middle of the log ends it: what follows is dropped.
    CorruptionTruncated "corruption_truncated",
    /// Reads are answered from what this replica has, without asking a quorum.
    StaleRead "stale_read",
    /// Node leases are renewed without a quorum behind the leader.
    RenewWithoutQuorum "renew_without_quorum",
    /// Each replica's archive loses every hundredth line.
    ArchiveLoses "archive_loses",
    /// Proposals wait without a bound.
    UnboundedQueue "unbounded_queue",
    /// A watcher of a job misses every third change.
    WatchSkips "watch_skips",
}

#[cfg(rowen_planted)]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(u8::MAX);

/// Whether this is the bug that was chosen.
#[cfg(rowen_planted)]
#[inline]
pub fn planted(bug: Bug) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// No bug is planted in this build.
#[cfg(not(rowen_planted))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

/// Chooses one for the whole process, or none.
#[cfg(rowen_planted)]
pub fn choose(bug: Option<Bug>) {
    CHOSEN.store(bug.map_or(u8::MAX, |bug| bug as u8), std::sync::atomic::Ordering::Relaxed);
}

/// Puts a list into an order that is another one each time, as a hash table's would be.
pub fn hash_order<T>(list: &mut [T]) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    if !list.is_empty() {
        list.rotate_left(TIMES.fetch_add(1, Ordering::Relaxed) % list.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_nothing_is_planted_here() {
        let mut names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Bug::ALL.len());
        assert!(Bug::ALL.iter().all(|bug| !planted(*bug)));
    }
}
