//! One machine: its clock, its disk, its shims, and an agent that decides with
//! the production `rowen_agent::core`. Never knows what is true, only what it
//! was told.

use std::collections::{BTreeMap, BTreeSet};

use rowen_agent::core::{
    Action, Core, Desired, Fence, LAUNCH_FAILED, Ordinal, Phase, StopAt, Task, TaskKey, Wanted,
};
use rowen_state::{AllocationId, Epoch, GpuMask, NodeId, Owner, TaskPhase, TaskReport};

use crate::{
    context::Context,
    control::LEASE_RAN_OUT,
    invariant::Invariant,
    logs::{Logs, Writer},
    message::{DesiredTask, Event, Killed, MachineAt, ToAgent, ToLeader},
    setup::{Life, Timing},
    timeline::Lane,
};

/// The agent looks at its clock this often.
const TURN_MS: u64 = 500;
/// As the agent's shell has it.
const RESEND_MS: u64 = 1_000;
/// As the agent's stream has them.
const SILENT_HEARTBEATS: u64 = 4;
const CONNECT_MS: u64 = 2_000;
/// Wishes that come a second time, of a hundred.
const AGAIN_PERCENT: u64 = 4;
/// Roundings, and what a shim's own clock is late by.
const SLACK_MS: u64 = 200;
/// A shim looks at the node lease this often.
const LEASE_CHECK_MS: u64 = 100;

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) at: MachineAt,
    pub(crate) node: NodeId,
    pub(crate) gpus: u32,
    pub(crate) link: Link,
    pub(crate) powered: bool,
    pub(crate) agent: Option<Agent>,
    /// GPUs that its driver does not show.
    pub(crate) sick: GpuMask,
    /// Its agent does nothing until then.
    pub(crate) frozen_until_ms: u64,
    /// Suspended until then: nothing of it moves, but its clock does. 0: it is not.
    pub(crate) frozen_ms: u64,
    /// Its clock runs so many millionths too fast.
    drift_ppm: i64,
    boot: u32,
    booted_ms: u64,
    lives: u64,
    disk: Disk,
    shims: BTreeMap<TaskKey, Shim>,
    /// What its tasks wrote.
    pub(crate) logs: Logs,
}

/// Which ways are open. A stream needs both.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) up: bool,
    pub(crate) down: bool,
    /// When the last message of a direction arrives: a stream keeps its order.
    up_last_ms: u64,
    down_last_ms: u64,
}

/// What survives the agent, and but for the lease the machine.
#[derive(Debug, Default)]
struct Disk {
    fence: Fence,
    lease_ms: u64,
    acked: BTreeSet<TaskKey>,
}

/// A running agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) life: u64,
    pub(crate) session: Option<u64>,
    /// Where it was sent to find the leader.
    pub(crate) go_to: Option<String>,
    /// How many replicas it has tried.
    pub(crate) tried: usize,
    /// When it last heard anything, or connected.
    heard_ms: u64,
    core: Core,
    welcomed: bool,
    /// As it was welcomed with.
    heartbeat_ms: u64,
    heartbeat_at_ms: u64,
    /// What the leader said of each task, beside what `core` looks at.
    told: BTreeMap<TaskKey, DesiredTask>,
}

/// A task's processes and the shim beside them.
#[derive(Debug)]
struct Shim {
    owner: Owner,
    gpus: GpuMask,
    notice_ms: u64,
    phase: Phase,
    /// When its processes are up, and how they would end by themselves.
    up_at_ms: u64,
    life: Life,
    dies_at_ms: u64,
    code: i32,
    stop: Option<StopAt>,
    /// When its end was decided, in true time: its notice counts from there.
    ordered_ms: u64,
    terminated: bool,
    killed: bool,
    /// The node lease has run out; `lost` once SIGTERM was sent for it: its end is not its own doing.
    losing: bool,
    lost: bool,
    wake_ms: u64,
}

impl Machine {
    pub(crate) fn new(at: MachineAt, node: NodeId, gpus: u32, drift_ppm: i64) -> Machine {
        Machine {
            at,
            node,
            gpus,
            link: Link { up: true, down: true, up_last_ms: 0, down_last_ms: 0 },
            powered: true,
            agent: None,
            sick: GpuMask::default(),
            frozen_until_ms: 0,
            frozen_ms: 0,
            drift_ppm,
            boot: 1,
            booted_ms: 0,
            lives: 0,
            disk: Disk::default(),
            shims: BTreeMap::new(),
            logs: Logs::default(),
        }
    }

    /// CLOCK_BOOTTIME of this machine.
    fn local_ms(&self, true_ms: u64) -> u64 {
        let elapsed = i128::from(true_ms - self.booted_ms);
        let drifted = elapsed + elapsed * i128::from(self.drift_ppm) / 1_000_000;
        u64::try_from(drifted).expect("a drift is small")
    }

    /// The first true millisecond at which its clock reads `local_ms` or later.
    fn true_ms(&self, local_ms: u64) -> u64 {
        let local = i128::from(local_ms.min(1 << 50));
        let elapsed = local * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        self.booted_ms + u64::try_from(elapsed).expect("times are positive") + 2
    }

    /// Tasks whose processes live, or are about to.
    pub(crate) fn living(&self) -> BTreeSet<TaskKey> {
        self.shims.iter().filter(|(_, shim)| !shim.phase.ended()).map(|(key, _)| *key).collect()
    }

    /// Everything on it is stopped; its clock goes on.
    pub(crate) fn freeze(&mut self, until_ms: u64, context: &mut Context) {
        self.frozen_ms = self.frozen_ms.max(until_ms);
        for (key, shim) in self.shims.iter().filter(|(_, shim)| shim.phase == Phase::Running) {
            context.journal.excuse(self.at, *key, shim.owner);
        }
    }

    /// What its agent remembers and nobody needs any more.
    pub(crate) fn leftovers(&self) -> usize {
        let Some(agent) = &self.agent else { return 0 };
        let over = agent.core.tasks().iter().filter(|(key, task)| {
            !task.lives() && self.disk.acked.contains(key) && !agent.told.contains_key(key)
        });
        over.count()
    }

    /// kill -9 of the agent; its shims go on.
    pub(crate) fn kill_agent(&mut self, context: &mut Context) {
        context.timeline.end(Lane::Agent(self.at), context.now_ms);
        self.logs.hang_up();
        if let Some(session) = self.agent.take().and_then(|agent| agent.session) {
            self.close(session, context);
        }
    }

    /// The replica hears of a stream's end, at once or by its keepalive.
    fn close(&self, session: u64, context: &mut Context) {
        let heard = self.link.up && self.powered;
        let in_ms =
            if heard { context.rng.between(1, 30) } else { context.rng.between(10_000, 20_000) };
        context.later(in_ms, Event::Closed { session });
    }

    /// It boots now.
    pub(crate) fn booted(&mut self, context: &Context) {
        self.booted_ms = context.now_ms - 10;
    }

    /// The power fails: every process is gone at once, memory and leases too.
    pub(crate) fn power_off(&mut self, context: &mut Context) {
        self.powered = false;
        self.kill_agent(context);
        self.frozen_ms = 0;
        self.frozen_until_ms = 0;
        let keys: Vec<TaskKey> = self.living().into_iter().collect();
        for key in keys {
            self.exit(key, 137, context);
        }
        self.shims.clear();
        self.disk.acked.clear();
    }

    pub(crate) fn power_on(&mut self, context: &mut Context) {
        self.powered = true;
        self.boot += 1;
        self.booted(context);
        self.disk.lease_ms = 0;
    }

    /// The agent starts: it takes over what it finds.
    pub(crate) fn start_agent(&mut self, context: &mut Context) {
        if !self.powered || self.agent.is_some() {
            return;
        }
        self.lives += 1;
        let tasks = self.shims.iter().map(|(key, shim)| (*key, found(shim))).collect();
        let mut core = Core::new(self.disk.fence.clone(), tasks, self.disk.lease_ms);
        self.disk.acked.iter().for_each(|key| core.acknowledged(*key));
        context.timeline.begin(Lane::Agent(self.at), "agent".into(), context.now_ms);
        self.agent = Some(Agent {
            life: self.lives,
            session: None,
            go_to: None,
            tried: self.at,
            heard_ms: 0,
            core,
            welcomed: false,
            heartbeat_ms: 0,
            heartbeat_at_ms: 0,
            told: BTreeMap::new(),
        });
        context.later(1, Event::Connect { machine: self.at, life: self.lives });
        context.later(TURN_MS, Event::Turn { machine: self.at, life: self.lives });
    }

    /// A stream was opened: the agent says who it is.
    pub(crate) fn hello(&mut self, session: u64, context: &mut Context) {
        let said_ms = self.local_ms(context.now_ms).max(1);
        let healthy = GpuMask::first(self.gpus).without(self.sick);
        let Some(agent) = &mut self.agent else { return };
        (agent.session, agent.welcomed) = (Some(session), false);
        agent.heard_ms = said_ms;
        let keys: Vec<TaskKey> = agent.core.tasks().keys().copied().collect();
        let hello = ToLeader::Hello {
            term: agent.core.term(),
            boot: self.boot,
            said_ms,
            healthy,
            tasks: keys.into_iter().filter_map(|key| self.report(key)).collect(),
        };
        self.send(session, hello, context);
    }

    /// Its agent, if it has a leader, says how its GPUs are.
    pub(crate) fn say_health(&mut self, context: &mut Context) {
        let sick = self.sick;
        let welcomed = self.agent.as_ref().filter(|agent| agent.welcomed);
        if let Some(session) = welcomed.and_then(|agent| agent.session) {
            self.send(session, ToLeader::GpuHealth { sick }, context);
        }
    }

    /// The stream is gone: the agent looks for the leader again.
    pub(crate) fn hangup(&mut self, session: u64, context: &mut Context) {
        let in_ms = context.rng.between(50, 1_000);
        self.leave(session, in_ms, context);
    }

    /// Likewise, but not before `in_ms`.
    fn leave(&mut self, session: u64, in_ms: u64, context: &mut Context) {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.session == Some(session)) else {
            return;
        };
        (agent.session, agent.welcomed) = (None, false);
        let life = agent.life;
        self.logs.hang_up();
        self.close(session, context);
        context.later(in_ms, Event::Connect { machine: self.at, life });
    }

    /// A message of the leader.
    pub(crate) fn hear(
        &mut self,
        session: u64,
        message: ToAgent,
        timing: &Timing,
        context: &mut Context,
    ) {
        let local_ms = self.local_ms(context.now_ms);
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.session == Some(session)) else {
            return;
        };
        agent.heard_ms = local_ms;
        let stale = match message {
            ToAgent::Refused { leader, retry_after_ms } => {
                agent.go_to = Some(leader).filter(|leader| !leader.is_empty());
                return match retry_after_ms {
                    0 => self.hangup(session, context),
                    // Never earlier: the leader has kept that moment free.
                    least_ms => {
                        let in_ms = context.rng.between(least_ms, least_ms + least_ms / 10);
                        self.leave(session, in_ms, context);
                    }
                };
            }
            ToAgent::ReadLog { read, writer, follow } => {
                self.logs.read(read, writer, follow);
                None
            }
            ToAgent::StopLog { read } => {
                self.logs.stop(read);
                None
            }
            ToAgent::Welcome { term, node_lease_ms, heartbeat_ms } => {
                let done = agent.core.welcome(term, node_lease_ms);
                agent.welcomed = done.is_ok();
                agent.heartbeat_ms = heartbeat_ms;
                agent.heartbeat_at_ms = 0;
                done.err()
            }
            ToAgent::HeartbeatAck { seq, term } => match agent.core.heartbeat_ack(seq, term) {
                Ok(expires_ms) => {
                    self.disk.lease_ms = expires_ms.unwrap_or(self.disk.lease_ms);
                    None
                }
                Err(stale) => Some(stale),
            },
            ToAgent::ReportAck { seq } => {
                self.disk.acked.extend(agent.core.report_ack(seq));
                None
            }
            ToAgent::Desired { generation, term, tasks } => {
                let wanted = tasks.iter().map(|task| (task.key, wanted(task, local_ms))).collect();
                match agent.core.desire(Desired { generation, term, tasks: wanted }) {
                    Ok(taken) => {
                        if taken {
                            agent.told = tasks.into_iter().map(|task| (task.key, task)).collect();
                        }
                        None
                    }
                    Err(stale) => Some(stale),
                }
            }
        };
        if stale.is_some() {
            self.hangup(session, context);
        }
        self.turn(timing, context);
    }

    /// A shim tells the agent how far its task is.
    pub(crate) fn news(&mut self, key: TaskKey, timing: &Timing, context: &mut Context) {
        let (Some(agent), Some(shim)) = (&mut self.agent, self.shims.get(&key)) else { return };
        agent.core.observe(key, shim.phase.clone());
        self.turn(timing, context);
    }

    /// After every event: what follows from it.
    pub(crate) fn turn(&mut self, timing: &Timing, context: &mut Context) {
        let local_ms = self.local_ms(context.now_ms);
        let Some(agent) = &mut self.agent else { return };
        let actions = agent.core.reconcile(local_ms);
        // Before any launch, as `Action::Persist` asks; a new term likewise.
        self.disk.fence = agent.core.fence();
        for action in actions {
            match action {
                Action::Persist => {}
                Action::Launch(key) => self.launch(key, timing, context),
                Action::Stop(key, stop) => self.stop(key, stop, timing, context),
                Action::Refuse(key, why) => {
                    context.note(format_args!("m{} refuses {}: {why}", self.at, key.allocation));
                }
            }
        }
        self.tell(local_ms, context);
        self.forget();
        self.lose_patience(local_ms, context);
    }

    /// A replica that says nothing for long is left for another.
    fn lose_patience(&mut self, local_ms: u64, context: &mut Context) {
        let Some(agent) = &self.agent else { return };
        let patience_ms = (agent.heartbeat_ms * SILENT_HEARTBEATS).max(CONNECT_MS);
        let patience_ms = if agent.welcomed { patience_ms } else { CONNECT_MS };
        if let Some(session) = agent.session
            && local_ms > agent.heard_ms + patience_ms
        {
            self.hangup(session, context);
        }
    }

    fn launch(&mut self, key: TaskKey, timing: &Timing, context: &mut Context) {
        let agent = self.agent.as_ref().expect("it has just decided");
        let told = agent.told.get(&key).expect("only desired tasks are launched").clone();
        let life = Life::draw(told.owner, key.rank, &mut context.rng);
        let up_at_ms = context.now_ms + context.rng.between(10, 400);
        self.shims.insert(
            key,
            Shim {
                owner: told.owner,
                gpus: told.gpus,
                notice_ms: told.notice_ms,
                phase: Phase::Starting,
                up_at_ms,
                life,
                dies_at_ms: u64::MAX,
                code: life.code,
                stop: None,
                ordered_ms: u64::MAX,
                terminated: false,
                killed: false,
                losing: false,
                lost: false,
                wake_ms: 0,
            },
        );
        self.shim(key, timing, context);
    }

    fn stop(&mut self, key: TaskKey, stop: StopAt, timing: &Timing, context: &mut Context) {
        let term_ms = self.true_ms(stop.term_at_ms);
        if let Some(shim) = self.shims.get_mut(&key) {
            order(shim, stop, context.now_ms.min(term_ms));
            self.shim(key, timing, context);
        }
    }

    /// A shim's turn: its task comes up, ends by itself, or is ended.
    pub(crate) fn shim(&mut self, key: TaskKey, timing: &Timing, context: &mut Context) {
        let now_ms = context.now_ms;
        let local_ms = self.local_ms(now_ms);
        let lease_ms = self.disk.lease_ms;
        let over_ms = self.true_ms(lease_ms);
        let Some(shim) = self.shims.get_mut(&key) else { return };
        if shim.phase.ended() {
            return;
        }
        if shim.phase == Phase::Starting {
            if now_ms < shim.up_at_ms {
                let up_at_ms = shim.up_at_ms;
                return self.wake(key, up_at_ms, context);
            }
            if local_ms >= lease_ms {
                shim.lost = true;
                return self.exit(key, LAUNCH_FAILED, context);
            }
            shim.phase = Phase::Running;
            shim.dies_at_ms = now_ms.saturating_add(shim.life.runs_ms);
            let wrong = context.journal.begin(self.at, shim.gpus, key, shim.owner);
            context.note(format_args!("m{} runs {} rank {}", self.at, key.allocation, key.rank));
            context.timeline.runs(self.at, shim.gpus, shim.owner, now_ms);
            if let Some(writer) = writer(shim.owner, key) {
                self.logs.begin(writer, now_ms);
            }
            context.checked.add(Invariant::OneOwner, 1);
            context.checked.add(Invariant::LastOwnerGone, 1);
            context.checked.add(Invariant::EpochsRise, 1);
            context.checked.add(Invariant::EndedStays, 1);
            wrong.into_iter().for_each(|wrong| context.finding(wrong.invariant, wrong.what));
            self.tell_agent(key, context);
        }
        let shim = self.shims.get_mut(&key).expect("looked up above");
        if now_ms >= shim.dies_at_ms {
            let code = shim.code;
            return self.exit(key, code, context);
        }
        if local_ms >= lease_ms {
            shim.losing = true;
            let reason = LEASE_RAN_OUT.to_owned();
            let kill_at_ms = lease_ms + shim.notice_ms;
            order(shim, StopAt { term_at_ms: lease_ms, kill_at_ms, reason }, now_ms.min(over_ms));
        }
        let was_killed = shim.killed;
        advance(shim, local_ms, now_ms, timing, context);
        if shim.killed && !was_killed {
            let slack_ms = SLACK_MS + shim.notice_ms / 500;
            let had_notice = now_ms + slack_ms >= shim.ordered_ms + shim.notice_ms;
            context.killed.push(Killed { machine: self.at, key, had_notice });
        }
        self.wake_again(key, context);
    }

    /// When a shim has something to do next.
    fn wake_again(&mut self, key: TaskKey, context: &mut Context) {
        let shim = &self.shims[&key];
        let mut next_ms = shim.dies_at_ms;
        if self.local_ms(context.now_ms) < self.disk.lease_ms {
            let late_ms = context.rng.between(0, LEASE_CHECK_MS);
            next_ms = next_ms.min(self.true_ms(self.disk.lease_ms) + late_ms);
        }
        if let Some(stop) = &shim.stop {
            if !shim.terminated {
                next_ms = next_ms.min(self.true_ms(stop.term_at_ms.min(stop.kill_at_ms)));
            }
            if !shim.killed {
                next_ms = next_ms.min(self.true_ms(stop.kill_at_ms));
            }
        }
        self.wake(key, next_ms.max(context.now_ms + 1), context);
    }

    fn wake(&mut self, key: TaskKey, at_ms: u64, context: &mut Context) {
        let shim = self.shims.get_mut(&key).expect("the caller has it");
        let sooner = shim.wake_ms <= context.now_ms || at_ms < shim.wake_ms;
        if sooner && at_ms < u64::MAX {
            shim.wake_ms = at_ms;
            context.events.add(at_ms, Event::Shim { machine: self.at, key });
        }
    }

    fn exit(&mut self, key: TaskKey, code: i32, context: &mut Context) {
        let shim = self.shims.get_mut(&key).expect("the caller has it");
        let started = shim.phase != Phase::Starting;
        let done = started && code == 0 && !shim.terminated;
        let message = shim.stop.as_ref().map_or("", |stop| stop.reason.as_str()).to_owned();
        shim.phase = match shim.lost {
            true => Phase::Lost { message },
            false => Phase::Exited { code, message },
        };
        if started {
            context.journal.end(self.at, shim.gpus, key, shim.owner, done);
            context.timeline.ended(self.at, shim.gpus, context.now_ms);
            if let Some(writer) = writer(shim.owner, key) {
                self.logs.end(writer, context.now_ms);
            }
        }
        context
            .note(format_args!("m{} ended {} rank {}: {code}", self.at, key.allocation, key.rank));
        self.tell_agent(key, context);
        if context.rng.chance(4) {
            context.later(0, Event::Crash { machine: self.at });
        }
    }

    fn tell_agent(&mut self, key: TaskKey, context: &mut Context) {
        if let Some(agent) = &self.agent {
            let in_ms = context.rng.between(1, 40);
            context.later(in_ms, Event::News { machine: self.at, life: agent.life, key });
        }
    }

    /// Heartbeats and reports that are due.
    fn tell(&mut self, local_ms: u64, context: &mut Context) {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.welcomed) else { return };
        let Some(session) = agent.session else { return };
        if local_ms >= agent.heartbeat_at_ms {
            agent.heartbeat_at_ms = local_ms + agent.heartbeat_ms;
            let (seq, generation) = agent.core.heartbeat(local_ms);
            self.send(session, ToLeader::Heartbeat { seq, generation }, context);
        }
        let agent = self.agent.as_mut().expect("it was here");
        if let Some((seq, keys)) = agent.core.report(local_ms, RESEND_MS) {
            let tasks = keys.into_iter().filter_map(|key| self.report(key)).collect();
            self.send(session, ToLeader::Report { seq, tasks }, context);
        }
        for chunk in self.logs.chunks(context.now_ms) {
            self.send(session, chunk, context);
        }
    }

    fn report(&self, key: TaskKey) -> Option<TaskReport> {
        let task = self.agent.as_ref()?.core.task(&key)?;
        let (phase, message) = match &task.phase {
            Phase::Starting => (TaskPhase::Bound, String::new()),
            Phase::Running => (TaskPhase::Running, String::new()),
            Phase::Ready => (TaskPhase::Ready, String::new()),
            Phase::Exited { code, message } => (TaskPhase::Exited { code: *code }, message.clone()),
            Phase::Lost { message } => (TaskPhase::Lost, message.clone()),
        };
        Some(TaskReport {
            node: self.node,
            allocation: AllocationId(key.allocation),
            rank: key.rank,
            epoch: Epoch { incarnation: key.epoch.incarnation, index: key.epoch.index },
            phase,
            port: task.port,
            message,
        })
    }

    /// What the agent has forgotten and the leader knows leaves the disk.
    fn forget(&mut self) {
        let Some(agent) = &self.agent else { return };
        let acked = &self.disk.acked;
        self.shims.retain(|key, _| agent.core.task(key).is_some() || !acked.contains(key));
        let shims = &self.shims;
        self.disk.acked.retain(|key| shims.contains_key(key));
    }

    /// To the leader, in order.
    fn send(&mut self, session: u64, message: ToLeader, context: &mut Context) {
        let machine = self.at;
        let arrives_ms = context.now_ms + context.rng.between(1, 30);
        self.link.up_last_ms = arrives_ms.max(self.link.up_last_ms);
        context.events.add(self.link.up_last_ms, Event::Up { machine, session, message });
    }

    /// From the leader, likewise. Over a dead link nothing arrives, and before long the agent
    /// notices.
    pub(crate) fn send_down(&mut self, session: u64, message: ToAgent, context: &mut Context) {
        let machine = self.at;
        if !self.link.down {
            let in_ms = context.rng.between(500, 6_000);
            return context.later(in_ms, Event::Hangup { machine, session });
        }
        let arrives_ms = context.now_ms + context.rng.between(1, 30);
        self.link.down_last_ms = arrives_ms.max(self.link.down_last_ms);
        // A wish may come once more, when newer ones have come: no stream does that, and the agent
        // must not lean on it.
        if matches!(message, ToAgent::Desired { .. }) && context.rng.chance(AGAIN_PERCENT) {
            let again_ms = self.link.down_last_ms + context.rng.between(50, 5_000);
            let message = message.clone();
            context.events.add(again_ms, Event::Down { machine, session, message });
        }
        context.events.add(self.link.down_last_ms, Event::Down { machine, session, message });
    }
}

/// Whose log a task of a gang writes.
fn writer(owner: Owner, key: TaskKey) -> Option<Writer> {
    match owner {
        Owner::Gang { job, attempt } => Some(Writer { job, attempt, rank: key.rank }),
        Owner::Instance { .. } => None,
    }
}

/// SIGTERM and SIGKILL when they are due.
fn advance(shim: &mut Shim, local_ms: u64, now_ms: u64, timing: &Timing, context: &mut Context) {
    let Some(stop) = &shim.stop else { return };
    let killing = local_ms >= stop.kill_at_ms;
    if !shim.terminated && (killing || local_ms >= stop.term_at_ms) {
        shim.terminated = true;
        shim.lost = shim.losing;
        if let Some((after_ms, code)) = shim.life.on_term {
            let dies_at_ms = now_ms + after_ms;
            if dies_at_ms < shim.dies_at_ms {
                (shim.dies_at_ms, shim.code) = (dies_at_ms, code);
            }
        }
    }
    if killing && !shim.killed {
        shim.killed = true;
        let dies_at_ms = now_ms + context.rng.between(1, timing.kill_ms * 9 / 10);
        if dies_at_ms < shim.dies_at_ms {
            (shim.dies_at_ms, shim.code) = (dies_at_ms, 137);
        }
    }
}

/// A stop, or an earlier time for the one in force.
fn order(shim: &mut Shim, stop: StopAt, decided_ms: u64) {
    shim.ordered_ms = shim.ordered_ms.min(decided_ms);
    shim.stop = Some(match shim.stop.take() {
        None => stop,
        Some(known) => StopAt {
            term_at_ms: known.term_at_ms.min(stop.term_at_ms),
            kill_at_ms: known.kill_at_ms.min(stop.kill_at_ms),
            reason: known.reason,
        },
    });
}

fn found(shim: &Shim) -> Task {
    Task {
        gpus: shim.gpus.iter().map(Ordinal).collect(),
        notice_ms: shim.notice_ms,
        phase: shim.phase.clone(),
        stopping: shim.stop.clone(),
        port: 0,
    }
}

fn wanted(task: &DesiredTask, local_ms: u64) -> Wanted {
    let stop = task.stop.map(|(term_in_ms, kill_in_ms)| StopAt {
        term_at_ms: local_ms + term_in_ms.min(kill_in_ms),
        kill_at_ms: local_ms + kill_in_ms,
        reason: "the leader says so".to_owned(),
    });
    Wanted { gpus: task.gpus.iter().map(Ordinal).collect(), notice_ms: task.notice_ms, stop }
}
