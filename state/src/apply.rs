//! The only code that changes the state: one entry in, one outcome out.
//!
//! One file a command or a closely related pair. A handler checks everything
//! first and changes afterwards, so a refused command has changed nothing.

mod fabric;
mod fillers;
mod gangs;
mod grow;
mod health;
mod jobs;
mod liveness;
mod nodes;
mod places;
mod plans;
mod queues;
mod replicas;
mod reports;
mod shapes;
mod tick;
mod timing;
mod version;

use crate::{
    Cluster, Code, Command, Entry, JobId, Outcome, Refusal, Reply,
    cluster::ENDED_JOBS,
    requests::{self, Seen},
};

/// The clock may move on by at most this much in one entry: one replica whose
/// clock stands in the future must not expire everything.
const MAX_JUMP_MS: u64 = 7 * 86_400_000;

type Answer = Result<Reply, Refusal>;

impl Cluster {
    /// Applies the entry at `index` of the log. Indices rise, but not always by one:
    /// the log also holds entries of the consensus itself.
    ///
    /// # Panics
    /// When `index` was applied before: that would be a bug of the log.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Outcome {
        assert!(index > self.meta.applied, "entry {index} was applied before");
        self.meta.applied = index;
        let mut outcome = Outcome::default();
        let answer = self.answer(entry, &mut outcome);
        outcome.answer = Some(answer);
        self.forget_ended();
        self.settle(&mut outcome);
        outcome
    }

    fn answer(&mut self, entry: &Entry, outcome: &mut Outcome) -> Answer {
        if let Some(request) = &entry.request {
            match self.requests.look_up(request, self.meta.now_ms) {
                Seen::New => {}
                Seen::Answered(answer) => return answer,
                Seen::Expired => return Err(requests::expired()),
                Seen::Full => return Err(requests::full()),
            }
        }
        let answer =
            self.advance_clock(entry.at_ms).and_then(|()| self.dispatch(&entry.command, outcome));
        outcome.replan &= answer.is_ok();
        if let Some(request) = &entry.request {
            self.requests.remember(self.meta.applied, self.meta.now_ms, request, &answer);
        }
        answer
    }

    fn advance_clock(&mut self, at_ms: u64) -> Result<(), Refusal> {
        let now_ms = self.meta.now_ms;
        if now_ms > 0 && at_ms > now_ms + MAX_JUMP_MS {
            return Err(Refusal::new(
                Code::Conflict,
                format!(
                    "the clock would jump by {} s; set the replica's clock right",
                    (at_ms - now_ms) / 1000
                ),
            ));
        }
        self.meta.now_ms = now_ms.max(at_ms);
        Ok(())
    }

    fn dispatch(&mut self, command: &Command, outcome: &mut Outcome) -> Answer {
        self.since_passed(command)?;
        // A tick wakes the planner too: back-offs end with time.
        outcome.replan = true;
        match command {
            Command::Tick => self.tick(outcome),
            Command::SetFabric(record) => self.set_fabric(record, outcome),
            Command::SubmitJob(spec) => self.submit_job(spec, outcome),
            Command::CancelJob(id) => self.cancel_job(*id, outcome),
            Command::RequeueJob(id) => self.requeue_job(*id, outcome),
            Command::DeployFiller(spec) => self.deploy_filler(spec, outcome),
            Command::DrainFiller(id) => self.drain_filler(*id, false, outcome),
            Command::RemoveFiller(id) => self.drain_filler(*id, true, outcome),
            Command::CordonNode { node, reason } => self.cordon_node(*node, reason, outcome),
            Command::DrainNode { node, reason } => self.drain_node(*node, reason, outcome),
            Command::UndrainNode(node) => self.undrain_node(*node),
            Command::NodeUp(report) => self.node_up(report, outcome),
            Command::NodeSilent { node, came } => {
                self.not_come_again(*node, *came)?;
                self.node_silent(*node, outcome)
            }
            Command::NodeLost { node, came } => {
                self.not_come_again(*node, *came)?;
                self.node_lost(*node, outcome)
            }
            Command::ForgetNode(node) => self.forget_node(*node, outcome),
            Command::AdmitReplica { id, addr } => self.admit_replica(*id, addr),
            Command::RemoveReplica(id) => self.remove_replica(*id),
            Command::RaiseVersion { to, asked } => self.raise_version(*to, asked),
            Command::SetTiming { timing, granted } => self.set_timing(*timing, *granted),
            Command::SettleTiming { since } => self.settle_timing(*since),
            Command::SetHealth(reports) => self.set_health(reports, outcome),
            Command::SetQueue(spec) => self.set_queue(spec),
            Command::RemoveQueue(name) => self.remove_queue(name),
            Command::Report(reports) => {
                outcome.replan = false; // unless one of them frees something
                self.report(reports, outcome)
            }
            Command::CommitPlan(plan) => {
                outcome.replan = false;
                self.commit_plan(plan, outcome)
            }
        }
    }

    /// Ended jobs beyond the bound leave the state; the archive has them.
    fn forget_ended(&mut self) {
        while self.derived.ended.len() > ENDED_JOBS {
            let Some((_, id)) = self.derived.ended.remove_min() else { return };
            self.jobs.remove(id);
        }
    }

    fn live_job(&self, id: JobId) -> Result<&crate::Job, Refusal> {
        let job = self.jobs.get(id).ok_or_else(|| not_found("job", id))?;
        if job.state.ended() {
            return Err(Refusal::new(Code::Conflict, format!("job {id} has ended")));
        }
        Ok(job)
    }
}

fn not_found(what: &str, id: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::NotFound, format!("there is no {what} {id}"))
}
