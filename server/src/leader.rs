//! The leader's loop: it plans, pushes desired state, watches nodes, moves the clock.
//!
//! One loop owns the leader's memory. A replica that stops leading drops all of it:
//! the next leader derives everything again from the state.

use std::{sync::Arc, time::Duration};

use rowen_api::v1::server_message;
use rowen_state::{Cluster, Command, Effect, NodeId, Reply};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    auth::Principal,
    checkpoints,
    clock::boot_ms,
    convert,
    core::Core,
    liveness::Watch,
    machine::Pending,
    members,
    server::{Done, Server},
};

/// A node whose lease a quorum has just confirmed.
pub(crate) struct Renewal {
    pub(crate) node: NodeId,
    /// Answered once a quorum has confirmed the leadership after this came.
    pub(crate) done: oneshot::Sender<bool>,
}

/// Renewals that may wait; agents beyond it wait at the channel.
pub(crate) const RENEWALS: usize = 4_096;

/// How often the group and the hashes are looked at.
const TEND_PERIOD: Duration = Duration::from_millis(500);

/// Runs as long as the replica does, now leading, now not.
pub(crate) async fn run(server: Arc<Server>, mut renewals: mpsc::Receiver<Renewal>) {
    let mut leadership = server.replica.leadership();
    loop {
        let state = leadership.borrow_and_update().clone();
        if state.ready {
            tracing::info!(term = state.term, "this replica leads");
            Term::begin(server.clone(), state.term).run(&mut leadership, &mut renewals).await;
            server.sessions.detach_all();
            tracing::info!(term = state.term, "this replica leads no more");
        } else {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                Some(renewal) = renewals.recv() => drop(renewal.done.send(false)),
            }
        }
    }
}

/// One term of leadership, from the first applied entry of its own to its end.
struct Term {
    server: Arc<Server>,
    number: u64,
    watch: Watch,
    planning: Option<JoinHandle<()>>,
    /// The group is brought in line and hashes are compared, one such round at a time.
    tending: Option<JoinHandle<bool>>,
    tended: Instant,
    /// False while no majority agrees on the state.
    sound: bool,
    replan: bool,
    last_change: Instant,
}

type Leadership = tokio::sync::watch::Receiver<rowen_raft::Leadership>;

impl Term {
    fn begin(server: Arc<Server>, number: u64) -> Self {
        let view = server.view();
        server.clock.rebase(view.now_ms());
        let watch = Watch::new(server.timing().margins(), &view, boot_ms());
        let now = Instant::now();
        Term {
            server,
            number,
            watch,
            planning: None,
            tending: None,
            tended: now,
            sound: true,
            replan: true,
            last_change: now,
        }
    }

    async fn run(mut self, leadership: &mut Leadership, renewals: &mut mpsc::Receiver<Renewal>) {
        let timing = *self.server.timing();
        let mut beat =
            interval(Duration::from_millis(timing.heartbeat_ms.min(timing.tick_ms).min(100)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = self.server.feed.work.clone();
        let mut batch = Vec::new();
        while leadership.borrow_and_update().term == self.number && leadership.borrow().ready {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                pending = work.take() => self.changed(pending),
                _ = finished(&mut self.planning), if self.planning.is_some() => self.planning = None,
                sound = tended(&mut self.tending), if self.tending.is_some() => {
                    self.tending = None;
                    self.sound = sound;
                }
                count = renewals.recv_many(&mut batch, RENEWALS) => {
                    if count == 0 { return }
                    self.renew(std::mem::take(&mut batch)).await;
                }
                _ = beat.tick() => self.beat(),
            }
            self.plan();
        }
    }

    fn changed(&mut self, pending: Pending) {
        let view = self.server.view();
        self.last_change = Instant::now();
        self.replan |= pending.replan;
        for Effect::Push(node) in pending.effects {
            push(&self.server, &view, node);
        }
    }

    /// One plan is in flight at a time; it is made on its own thread.
    fn plan(&mut self) {
        if self.planning.is_some() || !self.sound || !std::mem::take(&mut self.replan) {
            return;
        }
        let server = self.server.clone();
        self.planning = Some(tokio::spawn(async move {
            let view = server.view();
            let Ok(plan) = tokio::task::spawn_blocking(move || Core::plan(&view)).await else {
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
    async fn renew(&mut self, batch: Vec<Renewal>) {
        let confirmed = self.server.replica.read_index().await.is_ok();
        let now_ms = boot_ms();
        for renewal in batch {
            if confirmed {
                self.watch.acknowledged(renewal.node, now_ms);
            }
            let _ = renewal.done.send(confirmed); // the agent may be gone
        }
    }

    /// What time alone brings: silent nodes, ticks.
    fn beat(&mut self) {
        let view = self.server.view();
        let mut due = self.watch.due(&view, boot_ms());
        if self.last_change.elapsed() >= Duration::from_millis(self.server.timing().tick_ms) {
            self.last_change = Instant::now();
            due.push(Command::Tick);
        }
        if self.tending.is_none() && self.tended.elapsed() >= TEND_PERIOD {
            self.tended = Instant::now();
            let server = self.server.clone();
            self.tending = Some(tokio::spawn(async move {
                members::step(&server).await;
                checkpoints::compare(&server).await
            }));
        }
        for command in due {
            let server = self.server.clone();
            tokio::spawn(async move {
                if let Err(status) = server.propose(&Principal::own("leader"), None, command).await
                {
                    tracing::warn!(%status, "a transition was not committed");
                }
            });
        }
    }
}

async fn tended(tending: &mut Option<JoinHandle<bool>>) -> bool {
    match tending {
        Some(task) => task.await.unwrap_or(true),
        None => true,
    }
}

async fn finished(planning: &mut Option<JoinHandle<()>>) {
    if let Some(task) = planning {
        let _ = task.await; // a panic was logged where it happened
    }
}

/// Sends a node its whole desired state, if its agent is attached here.
pub(crate) fn push(server: &Server, view: &Cluster, node: NodeId) {
    let desired = convert::desired(view, node, server.term(), server.clock.now_ms());
    server.sessions.send(node, server_message::Kind::Desired(desired));
}
