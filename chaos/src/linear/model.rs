//! What a part does when its operations come one after the other: small enough
//! to be seen to be right.
//!
//! Owns the sequential meaning of answers. What Rowen does by itself (a gang
//! starts, a job ends, a removed filler is gone) may happen before any operation;
//! the model lets it happen when an answer shows it. Never looks at times.

use rowen_state::{Code, Duty, FillerId, FillerState, JobState};

use super::partition::Part;
use crate::history::{Answer, Op, Operation};

/// A part at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Job(Job),
    Filler(Filler),
    Node(Duty3),
    /// The newest epoch that was seen, and whether that owner was seen to be gone.
    Gpu {
        epoch: (u64, u64),
        over: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Job {
    Absent,
    /// `progress` only rises, see [`progress`].
    Live {
        cancelled: bool,
        progress: u64,
    },
    Ended(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// Not by a cancel; how was not seen yet.
    ByItself,
    Completed,
    Failed,
    Cancelled,
}

/// [`Duty`] with what a search needs of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Duty3 {
    InService,
    Cordoned,
    Draining,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Filler {
    /// Ids up to `last` were given to this name or others.
    Absent {
        last: u64,
    },
    Present {
        id: Id,
        stage: Stage,
    },
}

/// The id that an unanswered deployment was given is not known: only that it is above `least`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    least: u64,
    known: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Active,
    Draining,
    /// It may be gone at any moment.
    Removing,
}

/// Before the first operation.
pub(super) fn initial(part: &Part) -> State {
    match part {
        Part::Job(_) => State::Job(Job::Absent),
        Part::Filler(_) => State::Filler(Filler::Absent { last: 0 }),
        Part::Node(_) => State::Node(Duty3::InService),
        Part::Gpu(..) => State::Gpu { epoch: (0, 0), over: true },
    }
}

/// The state after an operation, or `None` where it cannot have been answered so. One that was
/// not answered at all is taken to have been carried out.
pub(super) fn step(state: &State, operation: &Operation) -> Option<State> {
    let (op, result) = (&operation.op, operation.result.as_ref());
    if let Some(Answer::Refused(Code::Invalid | Code::Exhausted | Code::Expired)) = result {
        return Some(*state);
    }
    match state {
        State::Job(job) => step_job(*job, op, result).map(State::Job),
        State::Filler(filler) => step_filler(*filler, op, result).map(State::Filler),
        State::Node(duty) => step_node(*duty, op, result).map(State::Node),
        State::Gpu { epoch, over } => match result? {
            Answer::SeenGpu { epoch: None } => Some(State::Gpu { epoch: *epoch, over: true }),
            Answer::SeenGpu { epoch: Some(seen) } => {
                let newer = seen > epoch || (seen == epoch && !over);
                newer.then_some(State::Gpu { epoch: *seen, over: false })
            }
            _ => None,
        },
    }
}

fn step_job(job: Job, op: &Op, result: Option<&Answer>) -> Option<Job> {
    use Job::{Absent, Ended, Live};
    let ended = |cancelled| Ended(if cancelled { End::Cancelled } else { End::ByItself });
    match (op, result) {
        (Op::Submit { .. }, None | Some(Answer::Job(_))) => match job {
            Absent => Some(Live { cancelled: false, progress: 0 }),
            _ => None,
        },
        (Op::Cancel { .. }, None | Some(Answer::Done)) => match job {
            Live { progress, .. } => Some(Live { cancelled: true, progress }),
            _ => None,
        },
        (Op::Requeue { .. }, None | Some(Answer::Done)) => match job {
            Live { cancelled: false, .. } => Some(job),
            _ => None,
        },
        (Op::Cancel { .. }, Some(Answer::Refused(Code::Conflict))) => match job {
            Live { cancelled, .. } => Some(ended(cancelled)),
            Ended(_) => Some(job),
            Absent => None,
        },
        // It waits, stops, or has ended.
        (Op::Requeue { .. }, Some(Answer::Refused(Code::Conflict))) => {
            (job != Absent).then_some(job)
        }
        // Ended jobs are forgotten too, but only beyond ten thousand.
        (_, Some(Answer::Refused(Code::NotFound)) | Some(Answer::Nothing)) => {
            (job == Absent).then_some(job)
        }
        (Op::ReadJob { .. }, Some(Answer::SeenJob { state, attempt, .. })) => {
            see_job(job, *state, *attempt)
        }
        _ => None,
    }
}

fn see_job(job: Job, state: JobState, attempt: u32) -> Option<Job> {
    let end = match state {
        JobState::Completed => Some(End::Completed),
        JobState::Failed => Some(End::Failed),
        JobState::Cancelled => Some(End::Cancelled),
        _ => None,
    };
    match (job, end) {
        (Job::Ended(known), Some(end)) => {
            let fits = known == end || (known == End::ByItself && end != End::Cancelled);
            fits.then_some(Job::Ended(end))
        }
        (Job::Live { cancelled, .. }, Some(end)) => {
            (cancelled == (end == End::Cancelled)).then_some(Job::Ended(end))
        }
        (Job::Live { cancelled, progress: before }, None) => {
            let progress = progress(state, attempt);
            let fits = progress >= before && (!cancelled || state == JobState::Stopping);
            fits.then_some(Job::Live { cancelled, progress })
        }
        (Job::Absent, _) | (Job::Ended(_), None) => None,
    }
}

/// Orders what a live job goes through: waits, starts, runs, stops, waits again.
fn progress(state: JobState, attempt: u32) -> u64 {
    let within = match state {
        JobState::Starting => 0,
        JobState::Running => 1,
        JobState::Stopping => 2,
        _ => 3, // waits, with or without a hold, for the next attempt
    };
    u64::from(attempt) * 4 + within
}

fn step_node(duty: Duty3, op: &Op, result: Option<&Answer>) -> Option<Duty3> {
    match (op, result) {
        (Op::Cordon { .. }, None | Some(Answer::Done)) => Some(Duty3::Cordoned),
        (Op::Drain { .. }, None | Some(Answer::Done)) => Some(Duty3::Draining),
        (Op::Undrain { .. }, None | Some(Answer::Done)) => Some(Duty3::InService),
        (Op::ReadNode { .. }, Some(Answer::SeenNode { duty: seen })) => {
            let seen = match seen {
                Duty::InService => Duty3::InService,
                Duty::Cordoned => Duty3::Cordoned,
                Duty::Draining => Duty3::Draining,
            };
            (seen == duty).then_some(duty)
        }
        _ => None,
    }
}

fn step_filler(filler: Filler, op: &Op, result: Option<&Answer>) -> Option<Filler> {
    use Filler::{Absent, Present};
    let known = |id: FillerId| Id { least: id.0, known: true };
    let active = |id| Some(Present { id, stage: Stage::Active });
    match (op, result, filler) {
        (Op::Deploy { .. }, None, Absent { last }) => active(Id { least: last, known: false }),
        (Op::Deploy { .. }, None, Present { id, stage: Stage::Removing }) => {
            active(Id { least: id.least, known: false })
        }
        (Op::Deploy { .. }, None, Present { id, .. }) => active(id),
        (Op::Deploy { .. }, Some(Answer::Filler(id)), Absent { last }) => {
            (id.0 > last).then_some(Present { id: known(*id), stage: Stage::Active })
        }
        (Op::Deploy { .. }, Some(Answer::Filler(new)), Present { id, stage }) => {
            let fits = match stage {
                Stage::Removing => new.0 > id.least,
                _ => id.may_be(*new),
            };
            fits.then_some(Present { id: known(*new), stage: Stage::Active })
        }
        (Op::Deploy { .. }, Some(Answer::Refused(Code::Conflict)), Present { stage, .. }) => {
            (stage == Stage::Removing).then_some(filler)
        }
        (Op::DrainFiller { filler: named }, None | Some(Answer::Done), Present { id, stage }) => {
            let stage = if stage == Stage::Active { Stage::Draining } else { stage };
            id.may_be(*named).then_some(Present { id: known(*named), stage })
        }
        (Op::RemoveFiller { filler: named }, None | Some(Answer::Done), Present { id, .. }) => {
            id.may_be(*named).then_some(Present { id: known(*named), stage: Stage::Removing })
        }
        (_, Some(Answer::Refused(Code::NotFound)), Absent { .. }) => Some(filler),
        (
            Op::DrainFiller { filler: named } | Op::RemoveFiller { filler: named },
            Some(Answer::Refused(Code::NotFound)),
            Present { id, stage },
        ) => match stage {
            _ if !id.must_be(*named) => Some(filler),
            Stage::Removing => Some(Absent { last: id.least }),
            _ => None,
        },
        (Op::ReadFiller { .. }, Some(Answer::Nothing), Absent { .. }) => Some(filler),
        (Op::ReadFiller { .. }, Some(Answer::Nothing), Present { id, stage: Stage::Removing }) => {
            Some(Absent { last: id.least })
        }
        (
            Op::ReadFiller { .. },
            Some(Answer::SeenFiller { filler: seen, state }),
            Present { id, stage },
        ) => {
            let same = match state {
                FillerState::Active => stage == Stage::Active,
                FillerState::Draining => stage == Stage::Draining,
                FillerState::Removing => stage == Stage::Removing,
            };
            (same && id.may_be(*seen)).then_some(Present { id: known(*seen), stage })
        }
        _ => None,
    }
}

impl Id {
    fn may_be(self, id: FillerId) -> bool {
        if self.known { self.least == id.0 } else { id.0 > self.least }
    }

    fn must_be(self, id: FillerId) -> bool {
        self.known && self.least == id.0
    }
}
