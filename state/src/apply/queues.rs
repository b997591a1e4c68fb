//! Setting and removing queues, and who may be submitted to which.

use super::Answer;
use crate::{Cluster, Code, FieldError, Queue, QueueId, QueueSpec, Refusal, Reply, queue::QUEUES};

/// Names of queues in a message.
const NAMED: usize = 20;

impl Cluster {
    pub(super) fn set_queue(&mut self, spec: &QueueSpec) -> Answer {
        spec.validate()?;
        self.check_parent(spec)?;
        let known = self.derived.queues_by_name.get(&spec.name).copied();
        if known.is_none() && self.queues.len() >= QUEUES {
            return Err(Refusal::new(
                Code::Exhausted,
                format!("there are {QUEUES} queues already; remove some"),
            ));
        }
        match known {
            Some(id) => {
                let queue = self.queues.get_mut(id).expect("the index of names is derived");
                queue.spec = spec.clone();
            }
            None => {
                self.meta.last_queue += 1;
                let id = QueueId(self.meta.last_queue);
                self.queues.insert(id, Queue::new(id, spec.clone(), self.meta.now_ms));
                self.derived.queues_by_name.insert(spec.name.clone(), id);
            }
        }
        self.recount_queues();
        Ok(Reply::Done)
    }

    pub(super) fn remove_queue(&mut self, name: &str) -> Answer {
        let Some(id) = self.derived.queues_by_name.get(name).copied() else {
            return Err(Refusal::new(Code::NotFound, format!("there is no queue {name}")));
        };
        if let Some(below) = self.queues.values().find(|queue| queue.spec.parent == name) {
            return Err(Refusal::new(
                Code::Conflict,
                format!("queue {} is below {name}; move or remove it first", below.spec.name),
            ));
        }
        let live = self.jobs.values().filter(|job| !job.state.ended() && job.spec.queue == name);
        if let Some(job) = live.map(|job| job.id).next()
            && self.queues.len() > 1
        {
            return Err(Refusal::new(
                Code::Conflict,
                format!("job {job} is in queue {name}; cancel it or wait until it has ended"),
            ));
        }
        self.queues.remove(id);
        self.derived.queues_by_name.remove(name);
        Ok(Reply::Done)
    }

    /// Once there are queues, a job names one of them.
    pub(super) fn check_queue(&self, name: &str) -> Result<(), FieldError> {
        if self.queues.is_empty() || self.derived.queues_by_name.contains_key(name) {
            return Ok(());
        }
        let names = self.derived.queues_by_name.keys().take(NAMED).cloned().collect::<Vec<_>>();
        let more = if self.queues.len() > NAMED { " …" } else { "" };
        Err(FieldError::new(
            "queue",
            format!("there is no queue {name}"),
            format!("choose {}{more}, or add it with `rowen queue set {name}`", names.join(", ")),
        ))
    }
}
