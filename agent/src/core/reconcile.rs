//! The comparison of what should run with what runs.
//!
//! A pure function of its arguments: it never changes them; [`super::Core`]
//! takes the actions it returned as done.

use std::collections::{BTreeMap, BTreeSet};

use rowen_planted::{Bug, planted};

use super::{Action, Desired, Epoch, Observed, Ordinal, StopAt, Task, TaskKey, Wanted};

/// Two stops nearer than this are one: the same order sent twice arrives with
/// slightly different times, and the shim need not hear of it.
const SAME_STOP_MS: u64 = 20;

/// What to do at `now` (CLOCK_BOOTTIME). `desired` is `None` until a leader
/// has spoken; until then what runs goes on, as long as the node lease holds.
pub fn reconcile(desired: Option<&Desired>, observed: &Observed, now: u64) -> Vec<Action> {
    let fence = raised_fence(desired, observed);
    let mut actions = Vec::new();
    if fence != observed.fence {
        actions.push(Action::Persist);
    }
    for (key, task) in observed.tasks.iter().filter(|(_, task)| task.lives()) {
        actions.extend(stop(desired, observed, &fence, key, task, now));
    }
    let mut busy = busy(observed);
    for (key, wanted) in desired.iter().flat_map(|desired| &desired.tasks) {
        if observed.tasks.contains_key(key) {
            continue; // Runs, or has exited: an exit is final and is reported.
        }
        actions.extend(start(observed, &fence, &mut busy, key, wanted, now));
    }
    actions
}

/// The highest epoch of each GPU once `desired` is seen.
fn raised_fence(desired: Option<&Desired>, observed: &Observed) -> BTreeMap<Ordinal, Epoch> {
    let mut fence = observed.fence.clone();
    for (key, wanted) in desired.iter().flat_map(|desired| &desired.tasks) {
        for gpu in &wanted.gpus {
            let seen = fence.entry(*gpu).or_default();
            *seen = (*seen).max(key.epoch);
        }
    }
    fence
}

fn busy(observed: &Observed) -> BTreeSet<Ordinal> {
    let living = observed.tasks.values().filter(|task| task.lives());
    living.flat_map(|task| task.gpus.iter().copied()).collect()
}

/// A GPU of `gpus` that a newer allocation owns, as seen from `epoch`.
fn superseded(fence: &BTreeMap<Ordinal, Epoch>, gpus: &[Ordinal], epoch: Epoch) -> Option<Ordinal> {
    if planted(Bug::DropEpochCheck) {
        return None;
    }
    gpus.iter().copied().find(|gpu| fence.get(gpu).is_some_and(|seen| *seen > epoch))
}

/// Launches, refuses or waits.
fn start(
    observed: &Observed,
    fence: &BTreeMap<Ordinal, Epoch>,
    busy: &mut BTreeSet<Ordinal>,
    key: &TaskKey,
    wanted: &Wanted,
    now: u64,
) -> Option<Action> {
    if let Some(gpu) = superseded(fence, &wanted.gpus, key.epoch) {
        return Some(Action::Refuse(*key, format!("GPU {} has a newer owner", gpu.0)));
    }
    if wanted.stop.is_some() {
        // It never started here: to launch it only to end it would be a lie.
        return Some(Action::Refuse(*key, "ended before it started".to_string()));
    }
    let free = planted(Bug::LaunchOnBusy) || wanted.gpus.iter().all(|gpu| !busy.contains(gpu));
    if now >= observed.lease_expires_ms || !free {
        return None;
    }
    busy.extend(wanted.gpus.iter().copied());
    Some(Action::Launch(*key))
}

/// Ends a living task, or moves its end forward.
fn stop(
    desired: Option<&Desired>,
    observed: &Observed,
    fence: &BTreeMap<Ordinal, Epoch>,
    key: &TaskKey,
    task: &Task,
    now: u64,
) -> Option<Action> {
    let on_notice = |from_ms: u64, reason: &str| StopAt {
        term_at_ms: from_ms,
        kill_at_ms: from_ms + task.notice_ms,
        reason: reason.to_string(),
    };
    let mut order: Option<StopAt> = None;
    let mut add = |stop: StopAt| order = Some(earlier(order.take(), stop));
    if let Some(desired) = desired {
        match desired.tasks.get(key) {
            None => add(on_notice(now, "no longer wanted on this node")),
            Some(wanted) => {
                let told = wanted.stop.as_ref().map(|stop| whole_notice(stop, task, now));
                told.into_iter().for_each(&mut add);
            }
        }
        if superseded(fence, &task.gpus, key.epoch).is_some() {
            add(on_notice(now, "its GPUs have a newer owner"));
        }
    }
    if now >= observed.lease_expires_ms {
        // The shim counts from the same moment, with or without the agent.
        add(on_notice(observed.lease_expires_ms, "the node lease ran out"));
    }
    let order = order?;
    match &task.stopping {
        Some(known) if !moves(known, &order) => None,
        known => Some(Action::Stop(*key, earlier(known.clone(), order))),
    }
}

/// The notice counts from when a task can first hear of it: an entry that was long on its way, over
/// a change of leader say, has a deadline that may be over before anybody was told.
fn whole_notice(stop: &StopAt, task: &Task, now: u64) -> StopAt {
    if planted(Bug::EvictionWithoutNotice) {
        return stop.clone();
    }
    StopAt { kill_at_ms: stop.kill_at_ms.max(now + task.notice_ms), ..stop.clone() }
}

/// Of two stops, the earlier SIGTERM and the earlier SIGKILL.
fn earlier(known: Option<StopAt>, order: StopAt) -> StopAt {
    let Some(known) = known else { return order };
    let reason =
        if order.kill_at_ms < known.kill_at_ms { order.reason } else { known.reason.clone() };
    StopAt {
        term_at_ms: known.term_at_ms.min(order.term_at_ms),
        kill_at_ms: known.kill_at_ms.min(order.kill_at_ms),
        reason,
    }
}

fn moves(known: &StopAt, order: &StopAt) -> bool {
    order.kill_at_ms + SAME_STOP_MS < known.kill_at_ms
        || order.term_at_ms + SAME_STOP_MS < known.term_at_ms
}
