//! What happened to each job, as those who submitted it and the nodes themselves saw it.
//!
//! The control plane is not asked: its word is what is checked against this.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;

/// Faults kept for the report; more of them say nothing more.
const FAULTS: usize = 20;

/// See the module.
pub(super) struct Journal {
    begun: Instant,
    inner: Mutex<Inner>,
    /// Jobs that may be submitted and not be over.
    pub(super) room: Semaphore,
}

#[derive(Default)]
struct Inner {
    jobs: Vec<Life>,
    faults: Vec<String>,
    /// Term of the newest node lease of each agent, and when it was first held in that term.
    leases: BTreeMap<usize, (u64, u64)>,
    over: usize,
}

/// One job. Times in microseconds since the journal was begun; 0: not yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    pub(super) submitted_us: u64,
    /// As it was acknowledged; 0: not yet.
    pub(super) id: u64,
    pub(super) acknowledged_us: u64,
    /// Its node was told to launch it.
    pub(super) placed_us: u64,
    /// The log has that it runs.
    pub(super) running_us: u64,
    /// The log has its end.
    pub(super) over_us: u64,
    launches: u32,
    launched_id: u64,
}

impl Journal {
    pub(super) fn new(room: usize) -> Journal {
        let inner = Mutex::new(Inner::default());
        Journal { begun: Instant::now(), inner, room: Semaphore::new(room) }
    }

    /// A new job's number; its submission begins now.
    pub(super) fn submits(&self) -> usize {
        let submitted_us = self.now_us();
        let mut inner = self.lock();
        inner.jobs.push(Life { submitted_us, ..Life::default() });
        inner.jobs.len() - 1
    }

    pub(super) fn acknowledged(&self, number: usize, id: u64) {
        let now_us = self.now_us();
        let mut inner = self.lock();
        let job = &mut inner.jobs[number];
        (job.id, job.acknowledged_us) = (id, now_us);
    }

    pub(super) fn launched(&self, number: usize, id: u64) {
        let now_us = self.now_us();
        let mut inner = self.lock();
        let job = &mut inner.jobs[number];
        job.placed_us = job.placed_us.max(now_us);
        (job.launches, job.launched_id) = (job.launches + 1, id);
    }

    /// The leader has acknowledged what was reported of these: the number, and whether it is over.
    pub(super) fn reported(&self, jobs: impl Iterator<Item = (usize, bool)>) {
        let now_us = self.now_us();
        let mut inner = self.lock();
        for (number, over) in jobs {
            let job = &mut inner.jobs[number];
            if job.running_us == 0 {
                job.running_us = now_us;
            }
            if over && job.over_us == 0 {
                job.over_us = now_us;
                inner.over += 1;
                self.room.add_permits(1);
            }
        }
    }

    /// An agent's node lease was renewed by the leader of `term`.
    pub(super) fn renewed(&self, agent: usize, term: u64) {
        let now_us = self.now_us();
        let mut inner = self.lock();
        let held = inner.leases.entry(agent).or_insert((term, now_us));
        if held.0 < term {
            *held = (term, now_us);
        }
    }

    pub(super) fn fault(&self, what: String) {
        let mut inner = self.lock();
        if inner.faults.len() < FAULTS {
            inner.faults.push(what);
        }
    }

    pub(super) fn faults(&self) -> Vec<String> {
        self.lock().faults.clone()
    }

    /// When each agent first held a lease of `term` or a later one.
    pub(super) fn leases_since(&self, term: u64) -> Vec<u64> {
        let inner = self.lock();
        let held = inner.leases.values().filter(|(of, _)| *of >= term);
        held.map(|(_, since_us)| *since_us).collect()
    }

    /// Jobs submitted, and over.
    pub(super) fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.jobs.len(), inner.over)
    }

    pub(super) fn lives(&self) -> Vec<Life> {
        self.lock().jobs.clone()
    }

    pub(super) fn now_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with a job that was acknowledged and should be over, if anything.
pub(super) fn wrong(number: usize, job: &Life) -> Option<String> {
    let what = match job {
        Life { launches: 0, .. } => "never ran".into(),
        Life { launches: 2.., .. } => format!("ran {} times", job.launches),
        Life { over_us: 0, .. } => "is not over".into(),
        _ if job.launched_id != job.id => format!("ran as job {}", job.launched_id),
        _ => return None,
    };
    Some(format!("{} (job {}) {what}", name(number), job.id))
}

/// What a job is called.
pub(super) fn name(number: usize) -> String {
    format!("bench-{number}")
}

/// Which one is called so.
pub(super) fn number(name: &str) -> Option<usize> {
    name.strip_prefix("bench-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_right_only_if_it_ran_once_under_its_own_id() {
        let journal = Journal::new(0);
        let at = journal.submits();
        journal.acknowledged(at, 7);
        let wrong_now = || wrong(at, &journal.lives()[at]).unwrap_or_default();
        assert_eq!(wrong_now(), "bench-0 (job 7) never ran");
        journal.launched(at, 7);
        journal.reported([(at, false)].into_iter());
        assert_eq!(wrong_now(), "bench-0 (job 7) is not over");
        journal.reported([(at, true), (at, true)].into_iter());
        assert_eq!((wrong_now().as_str(), journal.counts()), ("", (1, 1)));
        assert_eq!(journal.room.available_permits(), 1, "once, however often it is told");
        journal.launched(at, 8);
        assert_eq!(wrong_now(), "bench-0 (job 7) ran 2 times");
        assert_eq!(number(&name(12)), Some(12));
    }

    #[test]
    fn a_lease_counts_from_the_first_renewal_of_its_term() {
        let journal = Journal::new(0);
        journal.renewed(0, 3);
        journal.renewed(1, 4);
        let first = journal.leases_since(4);
        journal.renewed(1, 4);
        assert_eq!((first.len(), journal.leases_since(4)), (1, first));
        assert_eq!(journal.leases_since(3).len(), 2);
    }
}
