//! Queues within one cycle: whose turn it is, and what each may still have.
//!
//! Where no queue is defined there is one order, by priority and age, and no limit. Else the queue
//! goes first that is below its guarantee, then the one that has had least for its weight; queues
//! below one another are compared level by level, and within a queue priority and age count.

use std::{cell::OnceCell, collections::BTreeMap};

use rowen_state::{Cluster, Job, JobSpec, Queue, QueueId};

/// What a GPU that a queue is given in this cycle counts as beside what it has had: an hour.
const GIVEN_MS: u128 = 3_600_000;

/// What queues have, with what the cycle gave.
pub(crate) struct Queues<'a> {
    view: &'a Cluster,
    /// To the queue itself or to one below it.
    given: BTreeMap<QueueId, u64>,
    given_to_all: u64,
    /// GPUs that are free or fillers', and guarantees that are not lent.
    open: OnceCell<u64>,
}

impl<'a> Queues<'a> {
    pub(crate) fn new(view: &'a Cluster) -> Self {
        Queues { view, given: BTreeMap::new(), given_to_all: 0, open: OnceCell::new() }
    }

    /// A gang of the queue gets GPUs.
    pub(crate) fn give(&mut self, queue: &str, gpus: u64) {
        self.given_to_all += gpus;
        for queue in self.view.queue_line(queue) {
            *self.given.entry(queue.id).or_default() += gpus;
        }
    }

    fn given(&self, queue: &Queue) -> u64 {
        self.given.get(&queue.id).copied().unwrap_or(0)
    }

    /// GPUs that a queue has, with what the cycle gave it.
    pub(crate) fn used(&self, queue: &Queue) -> u64 {
        queue.used_of("") + self.given(queue)
    }

    /// Why the job's queue may not have so many more, if so. A job that does not say which model
    /// it wants counts for each.
    pub(crate) fn refuse(&self, spec: &JobSpec, gpus: u64) -> Option<String> {
        let line = self.view.queue_line(&spec.queue);
        let own = line.first()?;
        for queue in &line {
            for (model, quota) in queue.spec.quotas() {
                let wanted = spec.resources.gpu_model.as_deref();
                let counts = model.is_empty() || wanted.is_none_or(|wanted| wanted == model);
                let used = queue.used_of(model) + self.given(queue);
                if let Some(limit) = quota.limit_gpus.filter(|limit| used + gpus > *limit)
                    && counts
                {
                    let name = &queue.spec.name;
                    let space = if model.is_empty() { "" } else { " " };
                    return Some(format!(
                        "queue {name} may have {limit}{space}{model} GPUs: {gpus} more would be \
                         too many"
                    ));
                }
            }
        }
        let borrows = self.used(own) + gpus > own.spec.quota.guarantee_gpus;
        if borrows { self.not_lent(&line, gpus) } else { None }
    }

    /// Who does not lend what a gang would have to borrow, if so.
    fn not_lent(&self, line: &[&Queue], gpus: u64) -> Option<String> {
        let kept = self.view.queues().values().filter_map(|queue| {
            let guarantee = queue.spec.quota.guarantee_gpus;
            let kept = guarantee.saturating_sub(queue.spec.lend_gpus?);
            let unused = kept.saturating_sub(self.used(queue));
            let other = line.iter().all(|own| own.id != queue.id);
            (unused > 0 && other).then_some((unused, queue))
        });
        let kept: Vec<(u64, &Queue)> = kept.collect();
        let sum: u64 = kept.iter().map(|(unused, _)| unused).sum();
        let (most, queue) = kept.into_iter().max_by_key(|(unused, queue)| (*unused, queue.id))?;
        let open = self.open().saturating_sub(self.given_to_all);
        (open < gpus + sum).then(|| {
            format!(
                "queue {} is guaranteed {most} GPUs more and does not lend them",
                queue.spec.name
            )
        })
    }

    fn open(&self) -> u64 {
        *self.open.get_or_init(|| {
            let counts = self.view.rooms().counts().flatten();
            counts.map(|count| u64::from(count.free) + u64::from(count.evictable)).sum()
        })
    }

    /// Lower goes first.
    fn rank(&self, line: &[Level<'_>]) -> Vec<(bool, u128)> {
        if line.is_empty() {
            return vec![(true, u128::MAX)]; // submitted before there were queues
        }
        let level = |Level { queue, spent_gpu_ms }: &Level<'_>| {
            let given = u128::from(self.given(queue)) * GIVEN_MS;
            let share = (u128::from(*spent_gpu_ms) + given) / u128::from(queue.spec.weight);
            (self.used(queue) >= queue.spec.quota.guarantee_gpus, share)
        };
        line.iter().map(level).collect()
    }
}

/// A queue of a line, and what it has had.
struct Level<'a> {
    queue: &'a Queue,
    spent_gpu_ms: u64,
}

/// Queued jobs, next first.
pub(crate) enum Order<'a> {
    /// No queue is defined.
    Plain(Box<dyn Iterator<Item = &'a Job> + 'a>),
    Fair(Fair<'a>),
}

pub(crate) struct Fair<'a> {
    lanes: Vec<Lane<'a>>,
    /// Whose turn it is, until somebody is given something.
    turn: Option<(usize, u64)>,
}

struct Lane<'a> {
    /// The outermost queue first.
    line: Vec<Level<'a>>,
    /// Last first.
    jobs: Vec<&'a Job>,
}

impl<'a> Order<'a> {
    pub(crate) fn new(view: &'a Cluster) -> Self {
        if view.queues().is_empty() {
            return Order::Plain(Box::new(view.queue()));
        }
        let mut by_queue: BTreeMap<&str, Vec<&Job>> = BTreeMap::new();
        for job in view.queue() {
            by_queue.entry(&job.spec.queue).or_default().push(job);
        }
        let lanes = by_queue.into_iter().map(|(name, mut jobs)| {
            jobs.reverse();
            let level =
                |queue: &'a Queue| Level { queue, spent_gpu_ms: queue.spent_at(view.now_ms()) };
            Lane { line: view.queue_line(name).into_iter().rev().map(level).collect(), jobs }
        });
        Order::Fair(Fair { lanes: lanes.collect(), turn: None })
    }

    pub(crate) fn next(&mut self, queues: &Queues<'_>) -> Option<&'a Job> {
        match self {
            Order::Plain(jobs) => jobs.next(),
            Order::Fair(fair) => fair.next(queues),
        }
    }
}

impl<'a> Fair<'a> {
    fn next(&mut self, queues: &Queues<'_>) -> Option<&'a Job> {
        let same = |(at, given): &(usize, u64)| {
            *given == queues.given_to_all && !self.lanes[*at].jobs.is_empty()
        };
        let at = match self.turn.filter(same) {
            Some((at, _)) => at,
            None => {
                let waiting = (0..self.lanes.len()).filter(|at| !self.lanes[*at].jobs.is_empty());
                waiting.min_by_key(|at| queues.rank(&self.lanes[*at].line))?
            }
        };
        self.turn = Some((at, queues.given_to_all));
        self.lanes[at].jobs.pop()
    }
}
