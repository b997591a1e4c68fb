//! Queues: how much of the cluster each may have, what it has, and what it has had.
//!
//! A queue has a *guarantee* that it gets back from whoever borrowed it, a *limit* that it never
//! passes, and a *weight* by which queues share what nobody is guaranteed. What it has counts for
//! the queues above it too. What it has had decays: half of it is forgotten in [`HALF_LIFE_MS`].
//! Integers only, so every replica forgets alike. Never decides who goes next: planning does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AllocationId, Cluster, FieldError, GpuMask, Job, JobId, JobSpec, JobState, NodeId, Owner,
    Place, QueueId, Table, spec,
};

/// Queues at once.
pub(crate) const QUEUES: usize = 1_024;
/// Queues above one another.
const DEPTH: usize = 8;
const MAX_GPUS: u64 = 1 << 32;
const MAX_WEIGHT: u64 = 1_000_000;
const MAX_MIN_RUN_MS: u64 = 30 * 86_400_000;
/// Half of what a queue has had is forgotten after so long.
pub const HALF_LIFE_MS: u64 = 7 * 86_400_000;

/// GPUs by model.
pub type ModelGpus = BTreeMap<String, u64>;

/// What a queue may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// It gets so many whenever it asks, from those who borrowed them.
    pub guarantee_gpus: u64,
    /// And never more than these; none: as many as there are.
    pub limit_gpus: Option<u64>,
}

/// What an operator says of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSpec {
    /// Unique.
    pub name: String,
    /// The queue above it; empty: none.
    pub parent: String,
    /// GPUs of all models together.
    pub quota: Quota,
    /// And of single ones.
    pub by_model: BTreeMap<String, Quota>,
    /// Of its guarantee, so many that it does not use may be lent; none: all.
    pub lend_gpus: Option<u64>,
    /// Its share of what nobody is guaranteed, beside those of the other queues.
    pub weight: u32,
    /// Its jobs of higher priority may evict those of lower priority.
    pub preempts: bool,
    /// A gang of it is evicted for another only after it has had its GPUs so long.
    pub min_run_ms: u64,
}

impl QueueSpec {
    /// Every limit of a queue by itself, first violation first.
    pub fn validate(&self) -> Result<(), FieldError> {
        spec::name("name", &self.name)?;
        if !self.parent.is_empty() {
            spec::name("parent", &self.parent)?;
        }
        check_quota("", &self.quota)?;
        for (model, quota) in &self.by_model {
            spec::length("by_model", model.len(), 128)?;
            if model.is_empty() {
                return Err(FieldError::new("by_model", "has no name", "name a GPU model"));
            }
            check_quota(&format!("by_model.{model}."), quota)?;
        }
        spec::length("by_model", self.by_model.len(), 64)?;
        spec::range("lend_gpus", self.lend_gpus.unwrap_or(0), 0, MAX_GPUS)?;
        spec::range("weight", self.weight.into(), 1, MAX_WEIGHT)?;
        spec::range("min_run", self.min_run_ms, 0, MAX_MIN_RUN_MS)
    }

    /// Its quotas: of all models together, which has no name, then of single ones.
    pub fn quotas(&self) -> impl Iterator<Item = (&str, Quota)> {
        let single = self.by_model.iter().map(|(model, quota)| (model.as_str(), *quota));
        std::iter::once(("", self.quota)).chain(single)
    }
}

fn check_quota(field: &str, quota: &Quota) -> Result<(), FieldError> {
    spec::range(&format!("{field}guarantee_gpus"), quota.guarantee_gpus, 0, MAX_GPUS)?;
    let Some(limit_gpus) = quota.limit_gpus else { return Ok(()) };
    let field = format!("{field}limit_gpus");
    spec::range(&field, limit_gpus, 0, MAX_GPUS)?;
    if limit_gpus < quota.guarantee_gpus {
        return Err(FieldError::new(
            &field,
            format!("{limit_gpus} is less than the guarantee of {}", quota.guarantee_gpus),
            "raise the limit or lower the guarantee",
        ));
    }
    Ok(())
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Its id.
    pub id: QueueId,
    /// What was said of it.
    pub spec: QueueSpec,
    /// GPUs that its gangs have or that are held for them, and those of the queues below it.
    pub used: ModelGpus,
    /// A limit was set below what it had then, and it still has more.
    pub over: bool,
    /// What it had had at `spent_ms`, decayed until then.
    spent_gpu_ms: u64,
    spent_ms: u64,
}

impl Queue {
    pub(crate) fn new(id: QueueId, spec: QueueSpec, now_ms: u64) -> Self {
        let used = ModelGpus::new();
        Queue { id, spec, used, over: false, spent_gpu_ms: 0, spent_ms: now_ms }
    }

    /// GPUs of a model; of all, where it has no name.
    pub fn used_of(&self, model: &str) -> u64 {
        of_model(&self.used, model)
    }

    /// GPU-milliseconds that count now.
    pub fn spent_at(&self, now_ms: u64) -> u64 {
        let since_ms = now_ms.saturating_sub(self.spent_ms);
        decayed(self.spent_gpu_ms, since_ms)
            .saturating_add(self.used_of("").saturating_mul(since_ms))
    }

    /// The limit that `more` would pass: of which model (none: of all), and how many it allows.
    pub fn limit_passed(&self, more: &ModelGpus) -> Option<(&str, u64)> {
        self.spec.quotas().find_map(|(model, quota)| {
            let (limit_gpus, more) = (quota.limit_gpus?, of_model(more, model));
            (more > 0 && self.used_of(model) + more > limit_gpus).then_some((model, limit_gpus))
        })
    }

    /// Changes what it has; what it had until now is booked first.
    fn change(&mut self, gpus: &ModelGpus, more: bool, now_ms: u64) {
        (self.spent_gpu_ms, self.spent_ms) = (self.spent_at(now_ms), now_ms);
        for (model, gpus) in gpus.iter().filter(|(_, gpus)| **gpus > 0) {
            let used = self.used.entry(model.clone()).or_default();
            *used = if more { *used + gpus } else { used.strict_sub(*gpus) };
            if *used == 0 {
                self.used.remove(model);
            }
        }
        if !more {
            self.over &= self.is_over();
        }
    }

    fn is_over(&self) -> bool {
        let over = |(model, quota): (&str, Quota)| {
            quota.limit_gpus.is_some_and(|limit| self.used_of(model) > limit)
        };
        self.spec.quotas().any(over)
    }
}

fn of_model(gpus: &ModelGpus, model: &str) -> u64 {
    match model {
        "" => gpus.values().sum(),
        model => gpus.get(model).copied().unwrap_or(0),
    }
}

/// What is left of an amount after so long: halved for each half-life, and for the rest multiplied
/// by 2^-(1/2), 2^-(1/4) … for each binary digit of it.
fn decayed(amount: u64, after_ms: u64) -> u64 {
    let halvings = after_ms / HALF_LIFE_MS;
    if halvings >= 64 {
        return 0;
    }
    let rest = u128::from(after_ms % HALF_LIFE_MS) * (1 << 16) / u128::from(HALF_LIFE_MS);
    let mut left = u128::from(amount >> halvings);
    for (digit, root) in ROOTS.iter().enumerate() {
        if rest >> (15 - digit) & 1 == 1 {
            left = (left * u128::from(*root)) >> 32;
        }
    }
    left as u64
}

/// 2^32 times 2^-(1/2), 2^-(1/4), 2^-(1/8) …
const ROOTS: [u64; 16] = [
    3_037_000_500,
    3_611_622_603,
    3_938_502_376,
    4_112_874_773,
    4_202_935_003,
    4_248_701_965,
    4_271_771_996,
    4_283_353_945,
    4_289_156_690,
    4_292_061_010,
    4_293_513_907,
    4_294_240_540,
    4_294_603_903,
    4_294_785_595,
    4_294_876_445,
    4_294_921_870,
];

impl Cluster {
    /// Queues by id; none: any name is a queue, without limits.
    pub fn queues(&self) -> &Table<QueueId, Queue> {
        &self.queues
    }

    /// The queue of that name.
    pub fn queue_named(&self, name: &str) -> Option<&Queue> {
        self.queues.get(*self.derived.queues_by_name.get(name)?)
    }

    /// A queue and those above it, itself first; empty: there is none of that name.
    pub fn queue_line(&self, name: &str) -> Vec<&Queue> {
        let mut line: Vec<&Queue> = Vec::new();
        let mut next = self.queue_named(name);
        while let Some(queue) = next.filter(|_| line.len() < DEPTH) {
            line.push(queue);
            next = self.queue_named(&queue.spec.parent);
        }
        line
    }

    /// Whether a queue may stand below another: neither below itself nor too deep.
    pub(crate) fn check_parent(&self, spec: &QueueSpec) -> Result<(), FieldError> {
        if spec.parent.is_empty() {
            return Ok(());
        }
        let line = self.queue_line(&spec.parent);
        let problem = match line.len() {
            0 => format!("there is no queue {}", spec.parent),
            _ if line.iter().any(|above| above.spec.name == spec.name) => {
                format!("{} is below {}", spec.parent, spec.name)
            }
            depth if depth + self.depth_below(&spec.name) >= DEPTH => {
                format!("more than {DEPTH} queues would stand above one another")
            }
            _ => return Ok(()),
        };
        Err(FieldError::new("parent", problem, "name a queue that exists and is not below it"))
    }

    fn depth_below(&self, name: &str) -> usize {
        let lines = self.queues.values().map(|queue| self.queue_line(&queue.spec.name));
        let below = lines.filter_map(|line| line.iter().position(|above| above.spec.name == name));
        below.max().unwrap_or(0)
    }

    /// GPUs of places, by model.
    pub fn gpus_of(&self, places: &[Place]) -> ModelGpus {
        let mut gpus = ModelGpus::new();
        for place in places {
            let Some(node) = self.nodes.get(place.node) else { continue };
            if place.gpus.is_empty() {
                continue;
            }
            match gpus.get_mut(&node.gpu_model) {
                Some(sum) => *sum += u64::from(place.gpus.count()),
                None => drop(gpus.insert(node.gpu_model.clone(), place.gpus.count().into())),
            }
        }
        gpus
    }

    /// GPUs of places, but for those that the job has already: a gang that grows keeps its own.
    pub(crate) fn held_beside(&self, id: JobId, places: &[Place]) -> ModelGpus {
        let own = self.jobs.get(id).and_then(|job| self.allocations.get(job.allocation?));
        let mut has: BTreeMap<NodeId, GpuMask> = BTreeMap::new();
        for task in own.iter().flat_map(|own| &own.tasks).filter(|task| !task.released) {
            let mask = has.entry(task.node).or_default();
            *mask = mask.or(task.gpus);
        }
        let beside = |place: &Place| {
            let own = has.get(&place.node).copied().unwrap_or_default();
            Place { gpus: place.gpus.without(own), ..*place }
        };
        self.gpus_of(&places.iter().map(beside).collect::<Vec<_>>())
    }

    /// Why a job's queue may not have so much more.
    pub(crate) fn check_limits(&self, queue: &str, more: &ModelGpus) -> Result<(), String> {
        for queue in self.queue_line(queue) {
            if let Some((_, limit_gpus)) = queue.limit_passed(more) {
                return Err(format!("queue {} may have {limit_gpus} GPUs", queue.spec.name));
            }
        }
        Ok(())
    }

    /// A gang of the queue, or a hold for one, got GPUs or gave them back.
    pub(crate) fn queue_uses(&mut self, queue: &str, gpus: &ModelGpus, more: bool) {
        if self.queues.is_empty() {
            return;
        }
        let now_ms = self.meta.now_ms;
        let line: Vec<QueueId> = self.queue_line(queue).iter().map(|queue| queue.id).collect();
        for id in line {
            let queue = self.queues.get_mut(id).expect("it is in the line");
            queue.change(gpus, more, now_ms);
        }
    }

    /// What each queue has, counted from allocations and holds.
    pub(crate) fn counted_uses(&self) -> BTreeMap<QueueId, ModelGpus> {
        let mut uses: BTreeMap<QueueId, ModelGpus> =
            self.queues.iter().map(|(id, _)| (id, ModelGpus::new())).collect();
        let mut add = |job: &Job, gpus: ModelGpus| {
            for queue in self.queue_line(&job.spec.queue) {
                let sums = uses.get_mut(&queue.id).expect("every queue is listed");
                for (model, gpus) in &gpus {
                    *sums.entry(model.clone()).or_default() += gpus;
                }
            }
        };
        for allocation in self.allocations.values() {
            let Owner::Gang { job, .. } = allocation.owner else { continue };
            let Some(job) = self.jobs.get(job) else { continue };
            let kept = allocation.tasks.iter().filter(|task| !task.released);
            let places: Vec<Place> =
                kept.map(|task| Place { node: task.node, gpus: task.gpus }).collect();
            add(job, self.gpus_of(&places));
        }
        for job in self.jobs.values() {
            if let Some(hold) = &job.hold {
                add(job, self.held_beside(job.id, &hold.places));
            }
        }
        uses
    }

    /// After queues came, went or moved: what each has is counted anew.
    pub(crate) fn recount_queues(&mut self) {
        let now_ms = self.meta.now_ms;
        for (id, used) in self.counted_uses() {
            let queue = self.queues.get_mut(id).expect("just listed");
            (queue.spent_gpu_ms, queue.spent_ms) = (queue.spent_at(now_ms), now_ms);
            queue.used = used;
            queue.over = queue.is_over();
        }
    }

    /// Whether a job that gets `gpus` may have these gangs evicted: those of lower priority in its
    /// own queue, where that preempts, and borrowers, while its queue is below its guarantee. None
    /// before its minimum run, and no queue falls below its own guarantee.
    pub fn check_takes(
        &self,
        spec: &JobSpec,
        gpus: u64,
        gangs: &[AllocationId],
    ) -> Result<(), String> {
        let mine = self.queue_line(&spec.queue);
        let own = mine.first().ok_or("its queue is not defined")?;
        let below = own.used_of("") + gpus <= own.spec.quota.guarantee_gpus;
        let mut given_up = self.given_up();
        for id in gangs {
            let victim = self.check_take(spec, below, *id)?;
            let size = self.gpus_of_allocation(*id);
            let theirs = self.queue_line(&victim.spec.queue).into_iter();
            for queue in theirs.filter(|one| mine.iter().all(|above| above.id != one.id)) {
                let given_up = given_up.entry(queue.id).or_default();
                *given_up += size;
                if queue.used_of("") < queue.spec.quota.guarantee_gpus + *given_up {
                    return Err(format!("queue {} is guaranteed what it has", queue.spec.name));
                }
            }
        }
        Ok(())
    }

    /// Likewise of one gang, guarantees aside; `below`: the job's queue stays within its own.
    pub fn check_take(
        &self,
        spec: &JobSpec,
        below: bool,
        gang: AllocationId,
    ) -> Result<&Job, String> {
        let allocation = self.allocations.get(gang).ok_or_else(|| format!("{gang} is gone"))?;
        let Owner::Gang { job, .. } = allocation.owner else {
            return Err(format!("allocation {gang} is no gang"));
        };
        let victim = self.jobs.get(job).ok_or_else(|| format!("{gang} has no job"))?;
        if allocation.stop.is_some()
            || !matches!(victim.state, JobState::Starting | JobState::Running)
        {
            return Err(format!("job {job} is on its way out"));
        }
        let min_run_ms =
            self.queue_named(&victim.spec.queue).map_or(0, |queue| queue.spec.min_run_ms);
        if self.meta.now_ms < allocation.bound_ms + min_run_ms {
            return Err(format!("job {job} has not had its minimum run"));
        }
        let may = match victim.spec.queue == spec.queue {
            false => below,
            true => {
                let own = self.queue_named(&spec.queue);
                own.is_some_and(|own| own.spec.preempts) && spec.priority > victim.spec.priority
            }
        };
        may.then_some(victim).ok_or_else(|| format!("nothing allows job {job} to be evicted"))
    }

    /// GPUs of each queue whose gangs are being evicted: it will not have them much longer.
    pub fn given_up(&self) -> BTreeMap<QueueId, u64> {
        let mut given_up = BTreeMap::new();
        for allocation in self.stopping() {
            let Owner::Gang { job, .. } = allocation.owner else { continue };
            let evicted = allocation
                .stop
                .is_some_and(|stop| matches!(stop.reason, crate::StopReason::Evicted { .. }));
            let Some(job) = self.jobs.get(job).filter(|_| evicted) else { continue };
            for queue in self.queue_line(&job.spec.queue) {
                *given_up.entry(queue.id).or_default() += self.gpus_of_allocation(allocation.id);
            }
        }
        given_up
    }

    /// GPUs that an allocation still has.
    pub fn gpus_of_allocation(&self, id: AllocationId) -> u64 {
        let tasks = self.allocations.get(id).map_or(&[][..], |allocation| &allocation.tasks);
        let kept = tasks.iter().filter(|task| !task.released);
        kept.map(|task| u64::from(task.gpus.count())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_forgotten_by_halves() {
        let day_ms = HALF_LIFE_MS / 7;
        assert_eq!(decayed(1_000_000, 0), 1_000_000);
        assert_eq!(decayed(1_000_000, HALF_LIFE_MS), 500_000);
        assert_eq!(decayed(u64::MAX, 64 * HALF_LIFE_MS), 0);
        for days in 0..70 {
            let exact = 1e12 * 0.5f64.powf(days as f64 / 7.0);
            let left = decayed(1_000_000_000_000, days * day_ms) as f64;
            assert!((left / exact - 1.0).abs() < 1e-4, "day {days}: {left}, not {exact}");
        }
    }

    #[test]
    fn forgetting_in_steps_is_forgetting_at_once() {
        let steps = (0..14).fold(1_000_000_000_000, |left, _| decayed(left, HALF_LIFE_MS / 7));
        let at_once = decayed(1_000_000_000_000, 2 * HALF_LIFE_MS);
        assert!(steps.abs_diff(at_once) < at_once / 1_000, "{steps}, at once {at_once}");
    }
}
