//! Clients that wait for a job as `rowen submit --wait` does: on the stream of a replica, opened
//! again elsewhere when it breaks, from the index that was shown last.
//!
//! Owns what they were shown, and holds it against the log: indices rise, what is shown at an index
//! is what was so, nothing that lasts is left out, the end is seen.

use futures::StreamExt as _;
use rowen_api::v1::{self, job_service_server::JobService as _};
use rowen_server::{Shell, convert};
use rowen_state::{Job, JobId};
use tokio::task::AbortHandle;
use tonic::Code;

use crate::{
    inbox::Arrived,
    invariant::Invariant,
    message::{Event, ReplicaAt},
    net::Host,
    rng::Rng,
    world::World,
};

/// A watcher that is told nothing of what has been so for this long was left out: a stream may be
/// busy for three seconds finding out whether its replica is cut off.
const LASTS_MS: u64 = 4_000;
/// Jobs that somebody waits for, of a hundred.
const WATCHED_PERCENT: u64 = 40;

/// What a watcher is shown of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    state: v1::JobState,
    pub(crate) attempt: u32,
    reason: String,
}

/// What a stream says.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    Job { look: Look, index: u64 },
    Failed(Code),
    End,
}

/// All clients that wait for a job.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    list: Vec<Watch>,
    streams: u64,
}

#[derive(Debug)]
struct Watch {
    job: JobId,
    /// Of what was shown last; 0: nothing yet.
    index: u64,
    look: Option<Look>,
    over: bool,
    /// A restore has lost its job; another one may have its number now.
    lost: bool,
    open: Option<Open>,
}

/// A stream.
#[derive(Debug)]
struct Open {
    stream: u64,
    replica: ReplicaAt,
    life: u64,
    pump: Option<AbortHandle>,
    /// What the replica has said last.
    said: Option<(Look, u64)>,
    /// What it has been holding since then without a word, and since when.
    unsaid: Option<(Look, u64)>,
    /// When its last message arrives: a stream keeps its order.
    arrives_ms: u64,
}

impl Look {
    pub(crate) fn of(job: &Job) -> Look {
        let (attempt, reason) = (job.attempt, job.reason.clone());
        Look { state: convert::job_state_to_proto(job.state), attempt, reason }
    }

    /// Whether a job still looks so, without making a look of it.
    pub(crate) fn is_of(&self, job: &Job) -> bool {
        self.attempt == job.attempt
            && self.reason == job.reason
            && self.state == convert::job_state_to_proto(job.state)
    }

    fn shown(job: v1::Job) -> Look {
        Look { state: job.state(), attempt: job.attempt, reason: job.reason }
    }

    fn ended(&self) -> bool {
        use v1::JobState::{Cancelled, Completed, Failed};
        matches!(self.state, Completed | Failed | Cancelled)
    }

    pub(crate) fn runs(&self) -> bool {
        self.state == v1::JobState::Running
    }
}

impl World {
    /// Somebody has submitted a job, and may wait for it.
    pub(crate) fn may_watch(&mut self, job: JobId) {
        let watched = Rng::new(job.0 ^ 0x7761_7463).chance(WATCHED_PERCENT);
        let mut all = self.watches.list.iter();
        if watched && !all.any(|watch| watch.job == job && !watch.lost) {
            let watch = Watch { job, index: 0, look: None, over: false, lost: false, open: None };
            self.watches.list.push(watch);
            self.open_watch(self.watches.list.len() - 1);
        }
    }

    /// Opens a stream, at any replica.
    pub(crate) fn open_watch(&mut self, watch: usize) {
        let known = &self.watches.list[watch];
        if known.over || known.open.is_some() {
            return;
        }
        let active = self.group.active();
        let replica = self.context.rng.pick(&active).expect("a group is never empty");
        let there = Host::Replica(self.group.seats[replica].id);
        match self.group.net().fate_us(Host::Client, there).first() {
            Some(us) => {
                let event = Event::WatchAsked { watch, replica };
                self.context.later(us.div_ceil(1_000), event);
            }
            None => self.watch_again(watch),
        }
    }

    fn watch_again(&mut self, watch: usize) {
        let in_ms = self.context.rng.between(100, 2_000);
        self.context.later(in_ms, Event::Watch { watch });
    }

    /// The request arrives at a replica.
    pub(crate) fn watch_asked(&mut self, watch: usize, replica: ReplicaAt) {
        let seat = &self.group.seats[replica];
        let (Some(shell), Some(process)) = (&seat.shell, &seat.process) else {
            return self.watch_again(watch);
        };
        self.watches.streams += 1;
        let (stream, life) = (self.watches.streams, seat.life);
        let known = &mut self.watches.list[watch];
        let id = known.job.to_string();
        let mut request = Shell::authorized(v1::WatchJobRequest { id });
        // From where it left off, or from whatever is true now.
        if known.index > 0 && self.context.rng.chance(60) {
            request.metadata_mut().insert("rowen-read", known.index.into());
        }
        let (jobs, inbox) = (shell.jobs(), self.inbox.clone());
        let pump = process.spawn(async move {
            let say = |shown| inbox.push(Arrived::Watched { watch, stream, shown });
            let mut changes = match jobs.watch_job(request).await {
                Ok(answer) => Box::pin(answer.into_inner()),
                Err(status) => return say(Shown::Failed(status.code())),
            };
            drop(jobs);
            loop {
                match changes.next().await {
                    Some(Ok(job)) => {
                        let index = job.index;
                        say(Shown::Job { look: Look::shown(job), index });
                    }
                    Some(Err(status)) => return say(Shown::Failed(status.code())),
                    None => return say(Shown::End),
                }
            }
        });
        known.open = Some(Open {
            stream,
            replica,
            life,
            pump: Some(pump.abort_handle()),
            said: None,
            unsaid: None,
            arrives_ms: 0,
        });
    }

    /// A replica says something to a watcher.
    pub(crate) fn watch_says(&mut self, watch: usize, stream: u64, shown: Shown) {
        let known = &mut self.watches.list[watch];
        let job = known.job;
        let Some(open) = known.open.as_mut().filter(|open| open.stream == stream) else { return };
        if let Shown::Job { look, index } = &shown {
            let fell = open.said.as_ref().is_some_and(|(_, before)| before >= index);
            open.said = Some((look.clone(), *index));
            open.unsaid = None;
            let was = self.control.look(job, *index);
            let found = match (fell, was) {
                (true, _) => {
                    Some(format!("a watch of job {job} went from #{index} or later to it"))
                }
                (_, Some(was)) if was == look => None,
                (_, was) => {
                    Some(format!("a watcher of job {job} is shown {look:?} at #{index}: {was:?}"))
                }
            };
            self.context.check(Invariant::StreamsOrdered, found);
        }
        let replica = self.watches.list[watch].open.as_ref().expect("looked up above").replica;
        let here = Host::Replica(self.group.seats[replica].id);
        let fate = self.group.net().fate_us(here, Host::Client);
        let open = self.watches.list[watch].open.as_mut().expect("looked up above");
        match fate.first() {
            Some(us) => {
                open.arrives_ms = open.arrives_ms.max(self.context.now_ms + us.div_ceil(1_000));
                self.context.events.add(open.arrives_ms, Event::Shown { watch, stream, shown });
            }
            // Lost for good: the stream ends there, and its reader finds out.
            None => {
                open.pump.take().inspect(AbortHandle::abort);
                let in_ms = self.context.rng.between(500, 6_000);
                self.context.later(in_ms, Event::WatchBroke { watch, stream });
            }
        }
    }

    /// It arrives.
    pub(crate) fn shown(&mut self, watch: usize, stream: u64, shown: Shown) {
        let known = &mut self.watches.list[watch];
        let job = known.job;
        if known.open.as_ref().is_none_or(|open| open.stream != stream) {
            return;
        }
        match shown {
            Shown::Job { look, index } => {
                let back = index < known.index;
                let found = back.then(|| {
                    format!("a watcher of job {job} saw #{}, then again #{index}", known.index)
                });
                let starts = look.runs() && known.look.as_ref().is_none_or(|look| !look.runs());
                let attempt = look.attempt;
                (known.index, known.over) = (index, look.ended());
                known.look = Some(look);
                if known.over {
                    known.open = None;
                }
                self.context.check(Invariant::StreamsOrdered, found);
                if starts {
                    self.may_read_log(job, attempt);
                }
            }
            Shown::Failed(Code::NotFound) if self.control.look(job, u64::MAX).is_none() => {
                (known.open, known.over, known.lost) = (None, true, true); // by a restore
            }
            Shown::Failed(Code::NotFound) => {
                let what = format!("a watcher of job {job} is told that there is none");
                self.context.finding(Invariant::StreamsOrdered, what);
            }
            Shown::Failed(_) | Shown::End => self.watch_broke(watch, stream),
        }
    }

    /// A watcher finds its stream broken.
    pub(crate) fn watch_broke(&mut self, watch: usize, stream: u64) {
        let known = &mut self.watches.list[watch];
        if let Some(open) = known.open.take_if(|open| open.stream == stream) {
            open.pump.inspect(AbortHandle::abort);
            self.watch_again(watch);
        }
    }

    /// A replica's process is gone: so are its streams.
    pub(crate) fn watches_end(&mut self, replica: ReplicaAt) {
        for watch in 0..self.watches.list.len() {
            let open = self.watches.list[watch].open.as_ref();
            if let Some(open) = open.filter(|open| open.replica == replica) {
                let stream = open.stream;
                let in_ms = self.context.rng.between(1, 6_000);
                self.context.later(in_ms, Event::WatchBroke { watch, stream });
            }
        }
    }

    /// Whether any stream keeps quiet about what its replica has been holding for long.
    pub(crate) fn look_at_watches(&mut self) {
        let World { watches, group, context, .. } = self;
        for watch in &mut watches.list {
            let Some(open) = &mut watch.open else { continue };
            let seat = &group.seats[open.replica];
            let runs =
                seat.life == open.life && seat.process.as_ref().is_some_and(|p| !p.is_frozen());
            let (Some(shell), Some((said, _)), true, true) =
                (&seat.shell, &open.said, runs, open.pump.is_some())
            else {
                open.unsaid = None;
                continue;
            };
            let view = shell.view();
            let Some(job) = view.jobs().get(watch.job).filter(|job| !said.is_of(job)) else {
                open.unsaid = None;
                continue;
            };
            let since_ms = match &open.unsaid {
                Some((look, since_ms)) if look.is_of(job) => *since_ms,
                _ => {
                    open.unsaid = Some((Look::of(job), context.now_ms));
                    continue;
                }
            };
            context.checked.add(Invariant::StreamsOrdered, 1);
            if context.now_ms > since_ms + LASTS_MS {
                let what = format!(
                    "a watcher of job {} at replica {} was last told {said:?}; since {since_ms} it is {:?}",
                    watch.job, open.replica, open.unsaid
                );
                context.finding(Invariant::StreamsOrdered, what);
                return;
            }
        }
    }

    /// At rest everybody knows what has become of their job.
    pub(crate) fn check_watches(&mut self) {
        let World { watches, control, context, .. } = self;
        for watch in watches.list.iter().filter(|watch| !watch.lost) {
            let now = control.look(watch.job, u64::MAX);
            let knows = watch.look.as_ref() == now || now.is_none();
            let found = (!knows).then(|| {
                let Watch { job, look, index, .. } = watch;
                format!("a watcher of job {job} was last shown {look:?} at #{index}; it is {now:?}")
            });
            context.check(Invariant::StreamsOrdered, found);
        }
    }

    /// The log went back to `index`: what was shown of later is no more.
    pub(crate) fn roll_back_watches(&mut self, index: u64) {
        for watch in &mut self.watches.list {
            (watch.index, watch.over) = (watch.index.min(index), false);
            watch.open = None;
        }
        for watch in 0..self.watches.list.len() {
            self.watch_again(watch);
        }
    }
}
