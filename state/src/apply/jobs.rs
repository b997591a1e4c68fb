//! Submit, cancel, requeue.

use rowen_planted::{Bug, planted};

use super::{Answer, not_found};
use crate::{
    Cluster, Code, Job, JobId, JobSpec, JobState, Outcome, Refusal, Reply, StopReason,
    cluster::LIVE_JOBS,
};

impl Cluster {
    pub(super) fn submit_job(&mut self, spec: &JobSpec, outcome: &mut Outcome) -> Answer {
        spec.validate()?;
        self.check_queue(&spec.queue)?;
        if self.jobs.len() - self.derived.ended.len() >= LIVE_JOBS {
            return Err(Refusal::new(
                Code::Exhausted,
                format!("{LIVE_JOBS} jobs wait or run already; cancel some or wait"),
            ));
        }
        self.meta.last_job += 1;
        let id = JobId(self.meta.last_job);
        self.jobs.insert(id, Job::new(id, spec.clone(), self.meta.now_ms, self.meta.applied));
        self.set_job_state(id, JobState::Queued);
        let what = format!("submitted: {} × {} GPUs", spec.workers, spec.resources.gpus);
        self.tell(id, what, outcome);
        Ok(Reply::Job(id))
    }

    pub(super) fn cancel_job(&mut self, id: JobId, outcome: &mut Outcome) -> Answer {
        match self.live_job(id)?.state {
            JobState::Queued => {
                self.end_job(id, JobState::Cancelled, "cancelled while it waited", outcome)
            }
            JobState::Holding => {
                self.release_hold(id, "cancelled", outcome);
                self.end_job(id, JobState::Cancelled, "cancelled before it started", outcome);
            }
            JobState::Starting | JobState::Running => {
                self.stop_gang(id, StopReason::Cancelled, "cancelled", outcome);
                if planted(Bug::RefusedButDone) {
                    return Err(Refusal::new(Code::Conflict, format!("job {id} has ended")));
                }
            }
            JobState::Stopping if planted(Bug::CancelForgotten) => {}
            JobState::Stopping => {
                let job = self.jobs.get_mut(id).expect("live_job found it");
                job.stopping = Some(StopReason::Cancelled);
                self.release_hold(id, "cancelled", outcome); // of one that grows
                self.tell(id, "cancelled while it was stopping".into(), outcome);
            }
            JobState::Completed | JobState::Failed | JobState::Cancelled => {
                unreachable!("live_job refused")
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn requeue_job(&mut self, id: JobId, outcome: &mut Outcome) -> Answer {
        match self.live_job(id)?.state {
            JobState::Starting | JobState::Running => {
                self.stop_gang(id, StopReason::Requeued, "requeued by request", outcome);
                Ok(Reply::Done)
            }
            JobState::Queued | JobState::Holding => Err(Refusal::new(
                Code::Conflict,
                format!("job {id} does not run: it waits already"),
            )),
            _ => Err(Refusal::new(Code::Conflict, format!("job {id} is stopping already"))),
        }
    }

    /// Ends a job for good; its record goes to the archive.
    pub(super) fn end_job(&mut self, id: JobId, state: JobState, why: &str, outcome: &mut Outcome) {
        self.set_job_reason(id, why.to_owned());
        self.set_job_state(id, state);
        self.tell(id, why.to_owned(), outcome);
        let job =
            self.jobs.get(id).ok_or_else(|| not_found("job", id)).expect("it was just changed");
        let line = self.record(Cluster::job_key(id), job.clone());
        outcome.records.push(line);
    }
}
