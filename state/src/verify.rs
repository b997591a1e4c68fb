//! Every invariant of the state, checked from scratch. Used by tests, chaos and operators.

use std::collections::BTreeMap;

use crate::{
    Allocation, AllocationId, Class, Cluster, FillerId, FillerState, Job, JobId, JobState,
    Liveness, Node, NodeId, Owner, Part, StopReason, TaskPhase, WHOLE_MILLI, codec::READS_VERSION,
    ledger::UsageKey,
};

#[cfg(test)]
mod tests;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// Where, and what was found.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}

struct Findings(Vec<Violation>);

impl Findings {
    fn check(&mut self, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { invariant, detail: detail() });
        }
    }
}

impl Cluster {
    /// Checks every invariant; O(state). Empty is good.
    pub fn verify(&self) -> Vec<Violation> {
        let mut findings = Findings(Vec::new());
        self.verify_gpus(&mut findings);
        self.verify_allocations(&mut findings);
        self.verify_jobs(&mut findings);
        self.verify_holds(&mut findings);
        self.verify_fillers(&mut findings);
        self.verify_queues(&mut findings);
        self.verify_counters(&mut findings);
        self.verify_version(&mut findings);
        self.verify_timing(&mut findings);
        self.verify_health(&mut findings);
        self.verify_ledger(&mut findings);
        self.verify_derived(&mut findings);
        findings.0
    }

    /// Parts that are faulty are in the fabric, and GPUs are unfit exactly where one says so.
    fn verify_health(&self, findings: &mut Findings) {
        let version = self.meta.version;
        for (part, health) in self.health.rows() {
            let known = version >= 2 && self.check_part(part).is_ok();
            findings.check(known, "faulty parts are in the fabric", || format!("{part}"));
            let worst = health.left_milli <= health.said_milli
                && health.left_milli < WHOLE_MILLI
                && health.since_ms <= health.said_ms;
            findings.check(worst, "what counts of a part is the worst said", || {
                format!("{part}: {health:?}")
            });
        }
        for node in self.nodes.values().filter(|_| version >= 2) {
            for (gpu, slot) in (0u16..).zip(&node.gpus) {
                let part = Part::Gpu { node: node.name.clone(), gpu };
                let counts = self.health.counts_milli(&part) >= WHOLE_MILLI;
                findings.check(
                    slot.healthy == counts,
                    "a GPU is unfit where a fault says so",
                    || format!("{part}: {}, its fault: {:?}", slot.healthy, self.health_of(&part)),
                );
            }
        }
    }

    /// Slots and allocations say the same: no GPU has two owners, none has a lost one.
    fn verify_gpus(&self, findings: &mut Findings) {
        let mut by_tasks: BTreeMap<(NodeId, u32), AllocationId> = BTreeMap::new();
        for (id, allocation) in self.allocations.iter() {
            for task in allocation.tasks.iter().filter(|task| !task.released) {
                for ordinal in task.gpus.iter() {
                    let other = by_tasks.insert((task.node, ordinal), id);
                    findings.check(other.is_none(), "one owner a GPU", || {
                        format!("GPU {ordinal} of node {} has {id} and {other:?}", task.node)
                    });
                }
            }
        }
        for node in self.nodes.values() {
            for (ordinal, slot) in (0u32..).zip(&node.gpus) {
                let owner = by_tasks.remove(&(node.id, ordinal));
                findings.check(slot.owner == owner, "slots and allocations agree", || {
                    format!(
                        "GPU {ordinal} of {}: slot {:?}, allocation {owner:?}",
                        node.name, slot.owner
                    )
                });
                let class = owner
                    .and_then(|id| self.allocations.get(id))
                    .map(|allocation| allocation.owner.class());
                let metered = match class {
                    Some(class) => slot.meter.class == class,
                    None => matches!(slot.meter.class, Class::Idle | Class::Down),
                };
                findings.check(metered, "the meter follows the owner", || {
                    format!("GPU {ordinal} of {}: {:?} for {class:?}", node.name, slot.meter.class)
                });
            }
        }
        findings.check(by_tasks.is_empty(), "allocations lie on nodes", || format!("{by_tasks:?}"));
    }

    /// Every allocation lives, and its owner knows of it.
    fn verify_allocations(&self, findings: &mut Findings) {
        for (id, allocation) in self.allocations.iter() {
            findings
                .check(allocation.live(), "a live allocation has a live task", || format!("{id}"));
            findings.check(
                allocation.epoch.index <= self.meta.applied,
                "epochs come from the log",
                || format!("{id} has {:?}", allocation.epoch),
            );
            let known = match allocation.owner {
                Owner::Gang { job, .. } => {
                    self.jobs.get(job).is_some_and(|job| job.allocation == Some(id))
                }
                Owner::Instance { filler, .. } => self.fillers.contains(filler),
            };
            findings.check(known, "an allocation's owner knows it", || {
                format!("{id} of {:?}", allocation.owner)
            });
            for task in allocation.tasks.iter().filter(|task| task.phase.live()) {
                let node = self.nodes.get(task.node);
                let may_run =
                    node.is_some_and(|n| matches!(n.liveness, Liveness::Up | Liveness::Silent));
                findings.check(may_run && !task.released, "nothing runs on a lost node", || {
                    format!("{id} on node {}, GPUs released: {}", task.node, task.released)
                });
            }
        }
    }

    /// A job's state, its attempt and its times fit together.
    fn verify_jobs(&self, findings: &mut Findings) {
        for (id, job) in self.jobs.iter() {
            let bound =
                matches!(job.state, JobState::Starting | JobState::Running | JobState::Stopping);
            findings.check(
                job.allocation.is_some() == bound,
                "an attempt has an allocation",
                || format!("job {id} is {:?} with {:?}", job.state, job.allocation),
            );
            findings.check(
                (job.state == JobState::Stopping) == job.stopping.is_some(),
                "stopping has a reason",
                || format!("job {id} is {:?} for {:?}", job.state, job.stopping),
            );
            if let Some(allocation) = job.allocation {
                match self.allocations.get(allocation) {
                    Some(allocation) => {
                        verify_gang(job, allocation, findings);
                        self.verify_alone(job, allocation, findings);
                    }
                    None => findings.check(false, "an attempt has an allocation", || {
                        format!("job {id}: there is no allocation {allocation}")
                    }),
                }
            }
            findings.check(job.state.ended() == (job.ended_ms > 0), "ended has a time", || {
                format!("job {id}")
            });
        }
    }

    /// Nobody else is on the nodes of a gang that wants them for itself.
    fn verify_alone(&self, job: &Job, allocation: &Allocation, findings: &mut Findings) {
        if !job.spec.shape.nodes.exclusive {
            return;
        }
        for node in allocation.tasks.iter().filter(|task| !task.released).map(|task| task.node) {
            let Some(node) = self.nodes.get(node) else { continue };
            // While it is evicted, its node may be held for who comes after it.
            let leaves = allocation.stop.is_some();
            let alone = node.owners() == [allocation.id]
                && node.holders().iter().all(|holder| *holder == job.id || leaves);
            findings.check(alone, "an exclusive node has one gang", || {
                format!("{}: {:?}", node.name, node.owners())
            });
        }
    }

    /// Slots and holds say the same; a hold lies where gangs may go, and waits for somebody.
    fn verify_holds(&self, findings: &mut Findings) {
        let mut held: BTreeMap<(NodeId, u32), JobId> = BTreeMap::new();
        for (id, job) in self.jobs.iter() {
            let holding = job.state == JobState::Holding
                || (job.stopping == Some(StopReason::Resized) && job.hold.is_some());
            findings.check(
                job.hold.is_some() == holding,
                "a hold belongs to a holding job",
                || format!("job {id} is {:?}", job.state),
            );
            let victims = job.hold.iter().flat_map(|hold| &hold.victims);
            let waits = victims.filter(|id| self.allocations.contains(**id)).count() > 0;
            for place in job.hold.iter().flat_map(|hold| &hold.places) {
                let node = self.nodes.get(place.node);
                findings.check(
                    node.is_some_and(Node::schedulable),
                    "holds lie on schedulable nodes",
                    || format!("job {id} on node {}", place.node),
                );
                for ordinal in place.gpus.iter() {
                    let other = held.insert((place.node, ordinal), id);
                    findings.check(other.is_none(), "one hold a GPU", || {
                        format!("GPU {ordinal} of node {}: {id} and {other:?}", place.node)
                    });
                }
            }
            // One that waits for nobody was never bound, and never will be.
            findings.check(waits == job.hold.is_some(), "a hold waits for a victim", || {
                format!("job {id}")
            });
        }
        for node in self.nodes.values() {
            for (ordinal, slot) in (0u32..).zip(&node.gpus) {
                let holder = held.get(&(node.id, ordinal)).copied();
                findings.check(slot.held == holder, "slots and holds agree", || {
                    format!("GPU {ordinal} of {}: {:?}, hold of {holder:?}", node.name, slot.held)
                });
            }
        }
    }

    fn verify_fillers(&self, findings: &mut Findings) {
        let mut owned: BTreeMap<FillerId, Vec<AllocationId>> = BTreeMap::new();
        for (id, allocation) in self.allocations.iter() {
            if let Owner::Instance { filler, .. } = allocation.owner {
                owned.entry(filler).or_default().push(id);
            }
        }
        for (id, filler) in self.fillers.iter() {
            let owned = owned.remove(&id).unwrap_or_default();
            findings.check(filler.instances == owned, "a filler lists its instances", || {
                format!("{}: lists {:?}, owns {owned:?}", filler.spec.name, filler.instances)
            });
            let over = filler.state == FillerState::Removing && owned.is_empty();
            findings.check(!over, "a removed filler goes with its last instance", || {
                filler.spec.name.clone()
            });
        }
    }

    /// What a queue has is what its gangs have, and no more than its limits, if they were not lowered.
    fn verify_queues(&self, findings: &mut Findings) {
        let mut counted = self.counted_uses();
        for (id, queue) in self.queues.iter() {
            let found = || format!("{}: {:?} of {:?}", queue.spec.name, queue.used, queue.spec);
            let used = counted.remove(&id).unwrap_or_default();
            findings.check(queue.used == used, "a queue has what its gangs have", found);
            for (model, quota) in queue.spec.quotas() {
                let within = quota.limit_gpus.is_none_or(|limit| queue.used_of(model) <= limit);
                findings.check(within || queue.over, "a queue keeps its limits", found);
            }
            let named = self.derived.queues_by_name.get(&queue.spec.name) == Some(&id);
            findings.check(named, "queues have names of their own", found);
            let above = self.check_parent(&queue.spec).is_ok();
            findings.check(above, "queues stand below others, not in rings", found);
        }
        let versioned = self.queues.is_empty() || self.meta.version >= 2;
        findings.check(versioned, "queues belong to version 2", String::new);
    }

    /// Counters stand at or above every id given out, so that none is given out twice.
    fn verify_counters(&self, findings: &mut Findings) {
        let last = [
            ("job", self.meta.last_job, self.jobs.iter().next_back().map(|(id, _)| id.0)),
            ("filler", self.meta.last_filler, self.fillers.iter().next_back().map(|(id, _)| id.0)),
            (
                "allocation",
                self.meta.last_allocation,
                self.allocations.iter().next_back().map(|(id, _)| id.0),
            ),
            (
                "replica",
                self.meta.last_replica,
                self.replicas.iter().next_back().map(|(id, _)| id.0),
            ),
            ("queue", self.meta.last_queue, self.queues.iter().next_back().map(|(id, _)| id.0)),
            (
                "node",
                self.meta.last_node.into(),
                self.nodes.iter().next_back().map(|(id, _)| id.0.into()),
            ),
        ];
        for (what, counter, newest) in last {
            findings.check(newest <= Some(counter), "ids are given out once", || {
                format!("the {what} counter stands at {counter}, there is {newest:?}")
            });
        }
    }

    fn verify_version(&self, findings: &mut Findings) {
        let version = self.meta.version;
        let read = (1..=READS_VERSION).contains(&version);
        findings.check(read, "the version is one that this build reads", || version.to_string());
    }

    /// Times that can be kept, of a version that has them.
    fn verify_timing(&self, findings: &mut Findings) {
        let Some(in_force) = self.meta.timing else { return };
        let found = || format!("{in_force:?}");
        findings.check(self.meta.version >= 2, "timing belongs to version 2", found);
        findings.check(in_force.timing.validate().is_ok(), "the timing can be kept", found);
        let past = in_force.since <= self.meta.applied;
        findings.check(past, "the timing comes from the log", found);
    }

    /// allocated + idle + down = elapsed for each GPU; the ledger's lines and the meters agree.
    fn verify_ledger(&self, findings: &mut Findings) {
        let now_ms = self.meta.now_ms;
        for node in self.nodes.values() {
            for (ordinal, slot) in node.gpus.iter().enumerate() {
                let total: u64 = slot.meter.totals(now_ms).iter().sum();
                findings.check(
                    total == now_ms - slot.meter.added_ms,
                    "allocated + idle + down = elapsed",
                    || {
                        format!(
                            "GPU {ordinal} of {}: {total} ms of {}",
                            node.name,
                            now_ms - slot.meter.added_ms
                        )
                    },
                );
            }
        }
        let metered = self.gpu_time_ms();
        let mut billed = [0u64; 4];
        for (UsageKey { class, .. }, gpu_ms) in &self.usage {
            billed[*class as usize] += gpu_ms;
        }
        for allocation in self.allocations.values() {
            let class = allocation.owner.class() as usize;
            for task in allocation.tasks.iter().filter(|task| !task.released) {
                billed[class] += (now_ms - allocation.bound_ms) * u64::from(task.gpus.count());
            }
        }
        for class in [Class::Gang, Class::Filler] {
            let (metered, billed) = (metered[class as usize], billed[class as usize]);
            findings.check(metered == billed, "meters and ledger agree", || {
                format!("{}: {metered} metered, {billed} billed", class.as_str())
            });
        }
    }

    /// The derived parts equal a fresh derivation, and the digests a fresh sum.
    fn verify_derived(&self, findings: &mut Findings) {
        match self.to_snapshot().and_then(|bytes| Cluster::from_snapshot(&bytes)) {
            Err(error) => {
                findings.check(false, "a snapshot restores", || error.to_string());
            }
            Ok(fresh) => {
                findings.check(
                    fresh.derived.index == self.derived.index,
                    "the flat index is derived",
                    || "free or reclaimable counts differ from a fresh index".into(),
                );
                findings.check(
                    fresh.derived.queue == self.derived.queue,
                    "the queue is derived",
                    || format!("{:?} against {:?}", self.derived.queue, fresh.derived.queue),
                );
                findings.check(
                    fresh.derived.timed == self.derived.timed,
                    "timed jobs are derived",
                    || format!("{:?} against {:?}", self.derived.timed, fresh.derived.timed),
                );
                findings.check(
                    fresh.derived.ended == self.derived.ended,
                    "ended jobs are derived",
                    || format!("{:?} against {:?}", self.derived.ended, fresh.derived.ended),
                );
                let growing = fresh.derived.growing == self.derived.growing;
                findings.check(growing, "gangs that grow are derived", String::new);
                let exclusive = fresh.derived.exclusive == self.derived.exclusive;
                findings.check(exclusive, "exclusive jobs are derived", String::new);
                let stopping = fresh.derived.stopping == self.derived.stopping;
                findings.check(stopping, "allocations that stop are derived", String::new);
                let names = fresh.derived.fillers_by_name == self.derived.fillers_by_name
                    && fresh.derived.queues_by_name == self.derived.queues_by_name;
                findings.check(names, "names of fillers and queues are derived", String::new);
                let places = fresh.derived.by_name == self.derived.by_name
                    && fresh.derived.pos_of == self.derived.pos_of
                    && fresh.derived.rooms == self.derived.rooms;
                findings.check(places, "names and positions of nodes are derived", String::new);
                let slow = fresh.derived.impaired == self.derived.impaired;
                findings.check(slow, "nodes that faulty links slow down are derived", String::new);
            }
        }
    }
}

fn verify_gang(job: &Job, allocation: &Allocation, findings: &mut Findings) {
    let id = job.id;
    let owner = Owner::Gang { job: id, attempt: job.attempt };
    findings.check(allocation.owner == owner, "an attempt owns its allocation", || {
        format!("job {id}: {:?}", allocation.owner)
    });
    let tasks = allocation.tasks.len() as u32;
    let whole = job.spec.shape.admits_size(job.spec.workers, tasks);
    findings.check(whole, "all or nothing", || {
        format!("job {id} has {tasks} of {} tasks", job.spec.workers)
    });
    findings.check(
        allocation.stop.is_some() == (job.state == JobState::Stopping),
        "a stopping gang has its notice",
        || format!("job {id} is {:?} with {:?}", job.state, allocation.stop),
    );
    let came = allocation.tasks.iter().all(|task| task.phase != TaskPhase::Bound);
    let fits = match job.state {
        JobState::Starting => !came,
        JobState::Running => came,
        _ => true,
    };
    findings.check(fits, "a gang runs when all its tasks came", || {
        format!("job {id} is {:?}", job.state)
    });
}
