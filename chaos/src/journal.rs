//! The devices' own account: which task's processes live on which GPU, in
//! physical time. Kept apart from everything that is under test.

use std::collections::{BTreeMap, BTreeSet};

use rowen_agent::core::{Epoch, TaskKey};
use rowen_state::{GpuMask, JobId, Owner};

use crate::{
    invariant::{Finding, Invariant},
    message::MachineAt,
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    living: BTreeMap<(MachineAt, u32), TaskKey>,
    /// Of the tasks that live.
    owners: BTreeMap<(MachineAt, TaskKey), Owner>,
    last_epoch: BTreeMap<(MachineAt, u32), Epoch>,
    attempts: BTreeMap<JobId, Attempt>,
    /// Tasks that had processes once, and have none any more: none may begin again.
    ended: BTreeSet<(MachineAt, TaskKey)>,
    /// Workers of an attempt that ran as long as they wanted to, by rank.
    done: BTreeMap<(JobId, u32), BTreeSet<u32>>,
    /// After a restore: its incarnation, and which tasks of before it knows.
    restored: Option<(u64, BTreeSet<TaskKey>)>,
    /// Tasks whose machine was suspended with them: they may still live when another attempt runs.
    pub(crate) excused: BTreeSet<(MachineAt, TaskKey)>,
    /// Processes started.
    pub(crate) launches: u64,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    number: u32,
    living: u32,
}

impl Journal {
    /// Processes of a task begin to live; what is wrong about it.
    pub(crate) fn begin(
        &mut self,
        machine: MachineAt,
        gpus: GpuMask,
        key: TaskKey,
        owner: Owner,
    ) -> Vec<Finding> {
        self.launches += 1;
        self.owners.insert((machine, key), owner);
        let mut wrong = Vec::new();
        if self.ended.contains(&(machine, key)) {
            let what = format!("ended and began again: {key:?} on machine {machine}");
            wrong.push(Finding::new(Invariant::EndedStays, what));
        }
        for gpu in gpus.iter() {
            let at = (machine, gpu);
            if let Some(other) = self.living.insert(at, key) {
                let what = format!(
                    "two owners at once: GPU {gpu} of machine {machine} has {other:?} and {key:?}"
                );
                wrong.push(Finding::new(Invariant::OneOwner, what.clone()));
                // The newer one starts while the older one's processes live.
                wrong.push(Finding::new(Invariant::LastOwnerGone, what));
            }
            let last = self.last_epoch.entry(at).or_default();
            if key.epoch < *last {
                let what = format!(
                    "an epoch fell: GPU {gpu} of machine {machine} had {last:?}, now {key:?}"
                );
                wrong.push(Finding::new(Invariant::EpochsRise, what));
            }
            *last = key.epoch.max(*last);
        }
        if self.is_stray(&key) {
            self.excused.insert((machine, key));
        } else if let Owner::Gang { job, attempt } = owner {
            let known = self.attempts.entry(job).or_insert(Attempt { number: attempt, living: 0 });
            if known.living == 0 {
                known.number = attempt;
            } else if known.number != attempt {
                let what =
                    format!("two attempts at once: job {job} runs {} and {attempt}", known.number);
                wrong.push(Finding::new(Invariant::NotTooEarly, what));
            }
            known.living += 1;
        }
        wrong
    }

    /// The last of a task's processes is gone. `done`: it ran as long as it wanted to, and well.
    pub(crate) fn end(
        &mut self,
        machine: MachineAt,
        gpus: GpuMask,
        key: TaskKey,
        owner: Owner,
        done: bool,
    ) {
        self.ended.insert((machine, key));
        self.owners.remove(&(machine, key));
        for gpu in gpus.iter() {
            if self.living.get(&(machine, gpu)) == Some(&key) {
                self.living.remove(&(machine, gpu));
            }
        }
        if let Owner::Gang { job, attempt } = owner {
            let excused = self.excused.remove(&(machine, key));
            if let Some(known) = self.attempts.get_mut(&job).filter(|_| !excused) {
                known.living -= 1;
            }
            if done && !self.is_stray(&key) {
                self.done.entry((job, attempt)).or_default().insert(key.rank);
            }
        }
    }

    /// A machine is suspended with these tasks on it: nobody can end them in time.
    pub(crate) fn excuse(&mut self, machine: MachineAt, key: TaskKey, owner: Owner) {
        if !self.excused.insert((machine, key)) {
            return;
        }
        if let Owner::Gang { job, .. } = owner
            && let Some(known) = self.attempts.get_mut(&job)
        {
            known.living -= 1;
        }
    }

    /// Whose processes live on one of these GPUs, but for those that are excused.
    pub(crate) fn living_on(&self, machine: MachineAt, gpus: GpuMask) -> Option<TaskKey> {
        let living = gpus.iter().filter_map(|gpu| self.living.get(&(machine, gpu)).copied());
        living.into_iter().find(|key| !self.excused.contains(&(machine, *key)))
    }

    /// Tasks whose processes live, with their machines, but for those that are excused.
    pub(crate) fn all_living(&self) -> BTreeSet<(MachineAt, TaskKey)> {
        let living = self.living.iter().map(|((machine, _), key)| (*machine, *key));
        living.filter(|task| !self.excused.contains(task)).collect()
    }

    /// Workers of an attempt that ran to their own end.
    pub(crate) fn done(&self, job: JobId, attempt: u32) -> u32 {
        self.done.get(&(job, attempt)).map_or(0, |ranks| ranks.len() as u32)
    }

    /// All goes on from a state that knows only these tasks. Whatever else runs is to end when its
    /// agent hears of it, and must be gone from a GPU before anything else starts there; nobody can
    /// wait for it before.
    pub(crate) fn go_back(
        &mut self,
        incarnation: u64,
        known: &BTreeSet<TaskKey>,
        attempts: &BTreeSet<(JobId, u32)>,
    ) {
        // Numbers are given out again.
        self.done.retain(|attempt, _| attempts.contains(attempt));
        self.restored = Some((incarnation, known.clone()));
        let mut living: Vec<(MachineAt, TaskKey)> =
            self.living.iter().map(|((machine, _), key)| (*machine, *key)).collect();
        living.dedup();
        for (machine, key) in living {
            if self.is_stray(&key) && self.excused.insert((machine, key)) {
                let owner = self.owners.get(&(machine, key));
                if let Some(Owner::Gang { job, .. }) = owner
                    && let Some(attempt) = self.attempts.get_mut(job)
                {
                    attempt.living -= 1;
                }
            }
        }
        // An end that was told after the backup is not known any more.
        self.ended.retain(|(_, key)| !known.contains(key));
    }

    fn is_stray(&self, key: &TaskKey) -> bool {
        self.restored.as_ref().is_some_and(|(incarnation, known)| {
            key.epoch.incarnation < *incarnation && !known.contains(key)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(allocation: u64) -> TaskKey {
        let epoch = Epoch { incarnation: 1, index: allocation };
        TaskKey { allocation, rank: 0, epoch }
    }

    fn invariants(findings: &[Finding]) -> Vec<Invariant> {
        findings.iter().map(|finding| finding.invariant).collect()
    }

    fn gang(attempt: u32) -> Owner {
        Owner::Gang { job: JobId(1), attempt }
    }

    #[test]
    fn a_gpu_has_one_owner_at_a_time() {
        let mut journal = Journal::default();
        let filler = Owner::Instance { filler: rowen_state::FillerId(1), number: 1 };
        assert_eq!(journal.begin(0, GpuMask::first(4), key(1), filler), []);
        let wrong = journal.begin(0, GpuMask::one(3), key(2), filler);
        assert_eq!(invariants(&wrong), [Invariant::OneOwner, Invariant::LastOwnerGone]);
    }

    #[test]
    fn epochs_rise_and_attempts_follow_each_other() {
        let mut journal = Journal::default();
        assert_eq!(journal.begin(0, GpuMask::one(0), key(5), gang(1)), []);
        let wrong = journal.begin(1, GpuMask::one(0), key(6), gang(2));
        assert_eq!(invariants(&wrong), [Invariant::NotTooEarly]);
        journal.end(0, GpuMask::one(0), key(5), gang(1), true);
        journal.end(1, GpuMask::one(0), key(6), gang(2), false);
        assert_eq!(journal.done(JobId(1), 1), 1);
        let wrong = journal.begin(0, GpuMask::one(0), key(4), gang(2));
        assert_eq!(invariants(&wrong), [Invariant::EpochsRise]);
        let wrong = journal.begin(1, GpuMask::one(0), key(6), gang(2));
        assert_eq!(invariants(&wrong), [Invariant::EndedStays]);
    }
}
