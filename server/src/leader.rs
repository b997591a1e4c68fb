//! The leader's loop: it plans, pushes desired state, watches nodes, moves the clock.
//!
//! One loop owns the leader's memory. A replica that stops leading drops all of it:
//! the next leader derives everything again from the state.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use rowen_api::v1::server_message;
use rowen_planted::{Bug, planted};
use rowen_raft::sim;
use rowen_state::{Cluster, Command, Effect, NodeId, Reply, Timing};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    auth::Principal,
    checkpoints,
    clock::{Pace, boot_ms},
    convert,
    core::Core,
    liveness::Watch,
    machine::Pending,
    members,
    server::{Done, Server},
    timing,
    told::Told,
    versions,
};

/// A quorum is asked to confirm the leadership, for a heartbeat or a hello.
#[derive(Debug)]
pub(crate) struct Renewal {
    /// Whose node lease is to be renewed; none for a hello.
    pub(crate) node: Option<NodeId>,
    /// The times its agent was told.
    pub(crate) welcomed: Timing,
    /// Answered once a quorum has confirmed the leadership after this came.
    pub(crate) done: oneshot::Sender<Verdict>,
}

/// What came of a [`Renewal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be acknowledged.
    Confirmed,
    /// No quorum stands behind this replica.
    Unconfirmed,
    /// The state counts the node as gone: its agent must come again.
    ComeAgain,
}

/// Renewals that may wait; agents beyond it wait at the channel.
pub(crate) const RENEWALS: usize = 4_096;

/// How often the group and the hashes are looked at.
const TEND_PERIOD: Duration = Duration::from_millis(500);

/// Runs as long as the replica does, now leading, now not.
pub(crate) async fn run(server: Arc<Server>, mut renewals: mpsc::Receiver<Renewal>) {
    let mut leadership = server.replica.leadership();
    let mut views = server.feed.views.clone();
    let mut pace = Pace::default();
    loop {
        let state = leadership.borrow_and_update().clone();
        if state.ready {
            tracing::info!(term = state.term, "this replica leads");
            let term = Term::begin(server.clone(), state.term, pace.expect(boot_ms()));
            let ended = term.run(&mut leadership, &mut renewals).await;
            pace.led(server.clock.now_ms(), boot_ms());
            server.clock.stop();
            server.sessions.close();
            tracing::info!(term = state.term, "this replica leads no more");
            if ended.is_break() {
                return;
            }
        } else {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                Ok(()) = views.changed() => {
                    pace.saw(views.borrow_and_update().now_ms(), boot_ms());
                }
                Some(renewal) = renewals.recv() => drop(renewal.done.send(Verdict::Unconfirmed)),
            }
        }
    }
}

/// One term of leadership, from the first applied entry of its own to its end.
struct Term {
    server: Arc<Server>,
    number: u64,
    /// As agents know it.
    fence: u64,
    watch: Watch,
    /// One round of the quorum is under way at a time; it serves all that came before it.
    renewing: Option<JoinHandle<(Vec<Renewal>, bool)>>,
    planning: Option<JoinHandle<()>>,
    /// The group is brought in line and hashes are compared, one such round at a time.
    tending: Option<JoinHandle<bool>>,
    tended: Instant,
    /// False while no majority agrees on the state.
    sound: bool,
    replan: bool,
    ticking: Option<JoinHandle<()>>,
    ticked: Instant,
    told: Told,
}

type Leadership = tokio::sync::watch::Receiver<rowen_raft::Leadership>;

impl Term {
    fn begin(server: Arc<Server>, number: u64, lived: Option<u64>) -> Self {
        let view = server.view();
        server.clock.start(view.now_ms(), lived);
        let watch = Watch::new(server.timing().initial().into(), &view, boot_ms());
        let now = Instant::now();
        let fence = server.fence(number);
        server.sessions.open(fence);
        Term {
            server,
            number,
            fence,
            watch,
            renewing: None,
            planning: None,
            tending: None,
            tended: now.checked_sub(TEND_PERIOD).unwrap_or(now), // a new cluster rises at once
            sound: true,
            replan: true,
            ticking: None,
            ticked: now,
            told: Told::default(),
        }
    }

    /// Until the term ends, or, with `Break`, until the process does.
    async fn run(
        mut self,
        leadership: &mut Leadership,
        renewals: &mut mpsc::Receiver<Renewal>,
    ) -> ControlFlow<()> {
        let timing = *self.server.timing();
        let mut beat =
            interval(Duration::from_millis(timing.heartbeat_ms.min(timing.tick_ms).min(100)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = self.server.feed.work.clone();
        let mut batch = Vec::new();
        while leadership.borrow_and_update().term == self.number && leadership.borrow().ready {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() {
                    return ControlFlow::Break(());
                },
                pending = work.take() => self.changed(pending),
                _ = finished(&mut self.planning), if self.planning.is_some() => self.planning = None,
                sound = tended(&mut self.tending), if self.tending.is_some() => {
                    self.tending = None;
                    self.sound = sound;
                }
                count = renewals.recv_many(&mut batch, RENEWALS), if self.renewing.is_none() => {
                    if count == 0 {
                        return ControlFlow::Break(());
                    }
                    self.confirm(std::mem::take(&mut batch));
                }
                (batch, confirmed) = confirmed(&mut self.renewing), if self.renewing.is_some() => {
                    self.renewing = None;
                    self.renew(batch, confirmed);
                }
                _ = beat.tick() => self.beat(),
            }
            self.plan();
        }
        ControlFlow::Continue(())
    }

    fn changed(&mut self, pending: Pending) {
        let view = self.server.view();
        self.replan |= pending.replan;
        let changed = pending.effects.into_iter().map(|Effect::Push(node)| node);
        let news = self.told.news(&view, changed);
        push(&self.server, &view, news, self.fence);
    }

    /// One plan is in flight at a time; it is made on its own thread.
    fn plan(&mut self) {
        if self.planning.is_some() || !self.sound || !std::mem::take(&mut self.replan) {
            return;
        }
        let server = self.server.clone();
        self.planning = Some(sim::spawn(async move {
            let view = server.view();
            let Ok(plan) = sim::blocking(move || Core::plan(&view)).await else {
                tracing::error!("the planner panicked; nothing is placed until the state changes");
                return;
            };
            let Some(command) = plan else { return };
            match server.propose(&Principal::own("planner"), None, command).await {
                // More may fit now, and a long plan is cut: plan until nothing is proposed. A plan
                // of which nothing fitted is not made again until the state changes, or a planner
                // and an apply that disagree would fill the log.
                Ok(Done { reply: Reply::Planned { accepted: 0, rejected }, .. }) => {
                    tracing::warn!(rejected, "nothing of a plan fitted any more");
                }
                Ok(_) => server.feed.work.replan(),
                Err(status) => tracing::warn!(%status, "a plan was not committed"),
            }
        }));
    }

    /// A renewal counts only when a quorum confirms the leadership in a round begun
    /// after it came, or a deposed leader could renew for ever. One round serves all.
    /// The loop does not wait for it: a quorum that is slow must not hold up anything else.
    fn confirm(&mut self, batch: Vec<Renewal>) {
        let server = self.server.clone();
        self.renewing = Some(sim::spawn(async move {
            let confirmed =
                planted(Bug::RenewWithoutQuorum) || server.replica.read_index().await.is_ok();
            (batch, confirmed)
        }));
    }

    fn renew(&mut self, batch: Vec<Renewal>, confirmed: bool) {
        let (view, now_ms) = (self.server.view(), boot_ms());
        let in_force = timing::in_force(&self.server, &view);
        for Renewal { node, welcomed, done } in batch {
            let verdict = match node {
                _ if !confirmed => Verdict::Unconfirmed,
                Some(_) if welcomed != in_force => Verdict::ComeAgain,
                Some(node) if !self.watch.renew(&view, node, welcomed.into(), now_ms) => {
                    Verdict::ComeAgain
                }
                _ => Verdict::Confirmed,
            };
            let _ = done.send(verdict); // the agent may be gone
        }
    }

    /// What time alone brings: silent nodes, ticks.
    fn beat(&mut self) {
        let view = self.server.view();
        push(&self.server, &view, self.told.rest(), self.fence);
        for command in self.watch.due(&view, boot_ms()) {
            self.propose(command);
        }
        // However busy the log is: only a tick looks at time limits.
        let tick = Duration::from_millis(self.server.timing().tick_ms);
        if self.ticked.elapsed() >= tick
            && self.ticking.as_ref().is_none_or(JoinHandle::is_finished)
        {
            self.ticked = Instant::now();
            self.ticking = Some(self.propose(Command::Tick));
        }
        if self.tending.is_none() && self.tended.elapsed() >= TEND_PERIOD {
            self.tended = Instant::now();
            let server = self.server.clone();
            self.tending = Some(sim::spawn(async move {
                members::step(&server).await;
                versions::step(&server).await;
                timing::begin(&server).await;
                checkpoints::compare(&server).await
            }));
        }
    }

    fn propose(&self, command: Command) -> JoinHandle<()> {
        let server = self.server.clone();
        sim::spawn(async move {
            if let Err(status) = server.propose(&Principal::own("leader"), None, command).await {
                tracing::warn!(%status, "a transition was not committed");
            }
        })
    }
}

/// Pends for ever where nothing is under way. A round that panicked confirmed nobody.
async fn confirmed(
    renewing: &mut Option<JoinHandle<(Vec<Renewal>, bool)>>,
) -> (Vec<Renewal>, bool) {
    match renewing {
        Some(task) => task.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

async fn tended(tending: &mut Option<JoinHandle<bool>>) -> bool {
    match tending {
        Some(task) => task.await.unwrap_or(false), // a comparison that panicked shows nothing
        None => true,
    }
}

async fn finished(planning: &mut Option<JoinHandle<()>>) {
    if let Some(task) = planning {
        let _ = task.await; // a panic was logged where it happened
    }
}

/// Sends nodes their whole desired state, those whose agents are attached here.
/// `fence` is the term in which this replica leads: one that it has only heard of must not
/// stand on a view that may be older than that term's.
pub(crate) fn push(
    server: &Server,
    view: &Cluster,
    nodes: impl IntoIterator<Item = NodeId>,
    fence: u64,
) {
    let now_ms = server.clock.now_ms().unwrap_or(view.now_ms());
    let mut wishes = convert::Wishes::new(view, fence, now_ms);
    for node in nodes {
        server.sessions.send(node, server_message::Kind::Desired(wishes.of(node)));
    }
}
