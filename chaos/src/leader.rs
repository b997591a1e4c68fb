//! The control plane of the world: the production core and liveness watch, a log
//! that loses nothing it has acknowledged, and a leader that may be replaced at
//! any moment. openraft itself is not here yet: a change of leader is an event.

use std::collections::{BTreeMap, VecDeque};

use rowen_agent::core::{Epoch, TaskKey};
use rowen_server::{Core, Margins, Watch, desired_tasks};
use rowen_sim::START_MS;
use rowen_state::{
    Command, Effect, Entry, GpuMask, JobId, JobState, NodeReport, Reply, TaskReport,
};

use crate::{
    history::Answer,
    invariant::Invariant,
    message::{DesiredTask, Event, Fate, MachineAt, Proposal, Then, ToAgent, ToLeader},
    setup::Timing,
    world::World,
};

/// What an agent says of a task whose shim ended it because no leader was heard.
pub(crate) const LEASE_RAN_OUT: &str = "the node lease ran out";
/// What `Cluster::verify` looks at after each entry, and the checks beside it.
const VERIFIED: [Invariant; 7] = [
    Invariant::OneAllocation,
    Invariant::NotTooEarly,
    Invariant::AllOrNone,
    Invariant::EndedStays,
    Invariant::Notice,
    Invariant::TimeAddsUp,
    Invariant::SnapshotReplays,
];

/// See the module.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) core: Core,
    /// Every entry, so that the state can be built again from nothing.
    pub(crate) entries: Vec<(u64, Entry)>,
    /// A snapshot taken under way, and how many entries were in it.
    pub(crate) snapshot: Option<(usize, Vec<u8>)>,
    pub(crate) term: u64,
    pub(crate) leading: bool,
    pub(crate) pending: VecDeque<Proposal>,
    watch: Watch,
    sessions: BTreeMap<MachineAt, Session>,
    index: u64,
    last_commit_ms: u64,
    last_change_ms: u64,
    planning: bool,
    replan: bool,
    ended: BTreeMap<JobId, JobState>,
}

/// An agent's stream. Until its node is up in the log, what it says waits.
#[derive(Debug)]
struct Session {
    id: u64,
    open: bool,
    waiting: Vec<ToLeader>,
}

impl Control {
    pub(crate) fn new(timing: &Timing) -> Control {
        let core = Core::default();
        Control {
            watch: Watch::new(margins(timing), core.cluster(), 0),
            core,
            entries: Vec::new(),
            snapshot: None,
            term: 1,
            leading: true,
            pending: VecDeque::new(),
            sessions: BTreeMap::new(),
            index: 0,
            last_commit_ms: 0,
            last_change_ms: 0,
            planning: false,
            replan: false,
            ended: BTreeMap::new(),
        }
    }
}

fn margins(timing: &Timing) -> Margins {
    Margins {
        node_lease_ms: timing.node_lease_ms,
        kill_ms: timing.kill_ms,
        drift_ppm: timing.drift_ppm,
    }
}

impl World {
    /// The leader is gone. What it had proposed is in the log or lost; a new one comes
    /// after an election and remembers nothing of it.
    pub(crate) fn depose(&mut self) {
        if !std::mem::replace(&mut self.control.leading, false) {
            return;
        }
        while !self.control.pending.is_empty() {
            if self.context.rng.chance(50) {
                self.commit();
            } else {
                let lost = self.control.pending.pop_front().expect("not empty");
                self.not_committed(lost.then);
            }
        }
        for (machine, session) in std::mem::take(&mut self.control.sessions) {
            let in_ms = self.context.rng.between(10, 3_000);
            self.context.later(in_ms, Event::Hangup { machine, session: session.id });
        }
        let in_ms = match self.context.rng.between(0, 9) {
            0 => self.context.rng.between(5_000, 60_000), // no majority for a while
            _ => self.context.rng.between(300, 3_000),
        };
        self.context.note(format_args!("the leader of term {} is gone", self.control.term));
        // Its last plan, made of what it still believed, may reach the log after the next leader's.
        if self.context.rng.chance(40)
            && let Some(command) = Core::plan(self.control.core.cluster())
        {
            let proposal = Box::new(self.proposal("planner", None, command, Then::Planned));
            let late_ms = in_ms + self.context.rng.between(1, 1_500);
            let term = self.control.term;
            self.context.later(late_ms, Event::Propose { term, proposal });
        }
        self.context.later(in_ms, Event::Elected);
    }

    pub(crate) fn elected(&mut self) {
        let control = &mut self.control;
        control.term += 1;
        control.leading = true;
        (control.planning, control.replan) = (false, true);
        control.watch =
            Watch::new(margins(&self.timing), control.core.cluster(), self.context.now_ms);
        self.context.note(format_args!("term {} begins", control.term));
        self.context.later(100, Event::Beat { term: control.term });
    }

    /// What time alone brings: silent nodes, ticks, plans.
    pub(crate) fn beat(&mut self, term: u64) {
        if !self.control.leading || term != self.control.term {
            return;
        }
        let now_ms = self.context.now_ms;
        let mut due = self.control.watch.due(self.control.core.cluster(), now_ms);
        if now_ms >= self.control.last_change_ms + self.timing.tick_ms {
            self.control.last_change_ms = now_ms;
            due.push(Command::Tick);
        }
        for command in due {
            self.propose("leader", None, command, Then::Nothing);
        }
        self.plan();
        self.context.later(200, Event::Beat { term });
    }

    /// One plan is in flight at a time; the view it is made of may be old when it commits.
    fn plan(&mut self) {
        if self.control.planning || !std::mem::take(&mut self.control.replan) {
            return;
        }
        let Some(command) = Core::plan(self.control.core.cluster()) else { return };
        self.control.planning = true;
        let in_ms = match self.context.rng.between(0, 9) {
            0 => self.context.rng.between(500, 3_000),
            _ => self.context.rng.between(1, 100),
        };
        let proposal = self.proposal("planner", None, command, Then::Planned);
        let term = self.control.term;
        self.context.later(in_ms, Event::Propose { term, proposal: Box::new(proposal) });
    }

    /// A message of an agent.
    pub(crate) fn leader_hears(&mut self, machine: MachineAt, session: u64, message: ToLeader) {
        if !self.control.leading {
            return self.hang_up(machine, session);
        }
        if let ToLeader::Hello { term, boot, healthy, tasks } = message {
            return self.open(machine, session, term, boot, healthy, tasks);
        }
        let Some(known) = self.control.sessions.get_mut(&machine).filter(|s| s.id == session)
        else {
            return self.hang_up(machine, session);
        };
        if !known.open {
            return known.waiting.push(message);
        }
        self.handle(machine, session, message);
    }

    fn handle(&mut self, machine: MachineAt, session: u64, message: ToLeader) {
        let in_ms = self.context.rng.between(1, 20);
        let term = self.control.term;
        match message {
            ToLeader::Hello { .. } => {}
            ToLeader::Heartbeat { seq, generation } => {
                let event = Event::Renewed { machine, session, term, seq, generation };
                self.context.later(in_ms, event);
            }
            ToLeader::Report { seq, tasks } => {
                // Handled side by side with others: two may change places before the log.
                let then = Then::Reported { machine, session, seq };
                let proposal = self.proposal("agent", None, Command::Report(tasks), then);
                if self.context.rng.chance(3) && !self.healed {
                    self.count("duplicated report", Some(machine));
                    let twice = Event::Propose { term, proposal: Box::new(proposal.clone()) };
                    self.context.later(in_ms + 300, twice);
                }
                self.context.later(in_ms, Event::Propose { term, proposal: Box::new(proposal) });
            }
        }
    }

    fn open(
        &mut self,
        machine: MachineAt,
        session: u64,
        term: u64,
        boot: u32,
        healthy: GpuMask,
        tasks: Vec<TaskReport>,
    ) {
        if term > self.control.term {
            let what = format!("machine {machine} has seen term {term} of the future");
            self.context.finding(Invariant::EpochsRise, what);
        }
        let node = self.machines[machine].node;
        let welcome = ToAgent::Welcome { term: self.control.term };
        self.send_down(machine, session, welcome);
        self.control
            .sessions
            .insert(machine, Session { id: session, open: false, waiting: Vec::new() });
        let report = NodeReport {
            node,
            boot_id: format!("{machine}-{boot}"),
            addr: format!("m{machine}"),
            ports: vec![29_500],
            healthy,
            simulated: true,
            version: "chaos".into(),
            folder: format!("{machine}"),
            said_ms: 0, // its streams keep their order
            tasks,
        };
        self.propose("agent", None, Command::NodeUp(report), Then::Opened { machine, session });
    }

    /// A quorum has confirmed the leader after the heartbeat came.
    pub(crate) fn renewed(
        &mut self,
        machine: MachineAt,
        session: u64,
        term: u64,
        seq: u64,
        generation: u64,
    ) {
        if !self.control.leading || term != self.control.term {
            return;
        }
        let node = self.machines[machine].node;
        if !self.control.watch.renew(self.control.core.cluster(), node, self.context.now_ms) {
            return self.hang_up(machine, session); // it must say hello again
        }
        self.send_down(machine, session, ToAgent::HeartbeatAck { seq, term });
        let row = self.control.core.cluster().nodes().get(node).expect("the fabric stays");
        if row.generation > generation {
            self.push(machine); // heals a lost push
        }
    }

    pub(crate) fn propose(
        &mut self,
        principal: &str,
        request: Option<rowen_state::RequestId>,
        command: Command,
        then: Then,
    ) {
        let proposal = self.proposal(principal, request, command, then);
        self.enqueue(proposal);
    }

    fn proposal(
        &mut self,
        principal: &str,
        request: Option<rowen_state::RequestId>,
        command: Command,
        then: Then,
    ) -> Proposal {
        let fate = match self.context.rng.between(0, 99) {
            0..=2 if !self.healed => Fate::Lost,
            3..=5 if !self.healed => Fate::Unanswered,
            _ => Fate::Committed,
        };
        let principal = principal.to_owned();
        Proposal { at_ms: self.context.now_ms, principal, request, command, then, fate }
    }

    /// A leader's proposals commit in the order in which it made them.
    pub(crate) fn enqueue(&mut self, mut proposal: Proposal) {
        if !self.control.leading || proposal.fate == Fate::Lost {
            return self.not_committed(proposal.then);
        }
        proposal.at_ms = self.context.now_ms;
        let at_ms = self.context.now_ms + self.context.rng.between(1, 25);
        self.control.last_commit_ms = at_ms.max(self.control.last_commit_ms);
        self.control.pending.push_back(proposal);
        self.context.events.add(self.control.last_commit_ms, Event::Commit);
    }

    pub(crate) fn not_committed(&mut self, then: Then) {
        match then {
            Then::Planned => (self.control.planning, self.control.replan) = (false, true),
            Then::Opened { machine, session } => {
                self.control.sessions.remove(&machine);
                self.hang_up(machine, session);
            }
            // The agent reports again, the client asks again.
            Then::Nothing | Then::Reported { .. } | Then::Answered { .. } => {}
        }
    }

    /// The oldest proposal is on a quorum's disks: it is applied.
    pub(crate) fn commit(&mut self) {
        let Some(Proposal { at_ms, principal, request, command, then, fate }) =
            self.control.pending.pop_front()
        else {
            return;
        };
        // The log also holds entries of the consensus itself.
        self.control.index += self.context.rng.between(1, 2);
        let entry = Entry { at_ms: START_MS + at_ms, principal, request, command };
        let index = self.control.index;
        let step = self.control.core.apply_entry(index, &entry);
        self.context.note(format_args!("#{index} {}: {:?}", word(&entry.command), step.answer));
        self.control.entries.push((index, entry));
        self.control.last_change_ms = self.context.now_ms;
        self.control.replan |= step.replan;
        self.check_commit(index);
        for Effect::Push(node) in step.effects {
            let machine = self.machines.iter().position(|machine| machine.node == node);
            self.push(machine.expect("the fabric stays"));
        }
        match then {
            Then::Planned => self.control.planning = false,
            Then::Opened { .. } if step.answer.is_err() => self.not_committed(then),
            Then::Opened { machine, session } => self.opened(machine, session),
            Then::Reported { machine, session, seq } if fate == Fate::Committed => {
                self.send_down(machine, session, ToAgent::ReportAck { seq });
            }
            Then::Answered { operation } if fate == Fate::Committed => {
                let answer = Answer::from(&step.answer);
                let (call, now_ms) = (self.operations[operation].call, self.context.now_ms);
                self.history.returned(call, now_ms, answer, index);
                self.answered(operation, step.answer);
            }
            Then::Nothing | Then::Reported { .. } | Then::Answered { .. } => {}
        }
    }

    fn opened(&mut self, machine: MachineAt, session: u64) {
        let known = self.control.sessions.get_mut(&machine);
        let Some(known) = known.filter(|known| known.id == session) else { return };
        known.open = true;
        for message in std::mem::take(&mut known.waiting) {
            self.handle(machine, session, message);
        }
    }

    /// Sends a node its whole desired state, if its agent is attached.
    fn push(&mut self, machine: MachineAt) {
        let Some(session) = self.control.sessions.get(&machine).map(|session| session.id) else {
            return;
        };
        if !self.control.leading {
            return;
        }
        let cluster = self.control.core.cluster();
        let node = self.machines[machine].node;
        let now_ms = START_MS + self.context.now_ms;
        let tasks = desired_tasks(cluster, node).into_iter().map(|(allocation, rank)| {
            let epoch =
                Epoch { incarnation: allocation.epoch.incarnation, index: allocation.epoch.index };
            DesiredTask {
                key: TaskKey { allocation: allocation.id.0, rank: rank as u32, epoch },
                owner: allocation.owner,
                gpus: allocation.tasks[rank].gpus,
                notice_ms: allocation.notice_ms,
                stop: allocation.stop.map(|stop| {
                    let term_ms = stop.since_ms + stop.withdraw_ms;
                    (term_ms.saturating_sub(now_ms), stop.deadline_ms.saturating_sub(now_ms))
                }),
            }
        });
        let tasks: Vec<DesiredTask> = tasks.collect();
        let generation = cluster.nodes().get(node).map_or(0, |node| node.generation);
        let term = self.control.term;
        self.send_down(machine, session, ToAgent::Desired { generation, term, tasks });
    }

    fn send_down(&mut self, machine: MachineAt, session: u64, message: ToAgent) {
        self.machines[machine].send_down(session, message, &mut self.context);
    }

    fn hang_up(&mut self, machine: MachineAt, session: u64) {
        let in_ms = self.context.rng.between(1, 50);
        self.context.later(in_ms, Event::Hangup { machine, session });
    }

    /// What must hold after each entry.
    fn check_commit(&mut self, index: u64) {
        let World { control, context, machines, .. } = self;
        let cluster = control.core.cluster();
        for invariant in VERIFIED {
            context.checked.add(invariant, 1);
        }
        for violation in cluster.verify() {
            let invariant = Invariant::of_verify(violation.invariant);
            context.finding(invariant, format!("verify: {violation}"));
        }
        for allocation in cluster.allocations().values().filter(|a| a.epoch.index == index) {
            for task in &allocation.tasks {
                let machine = machines.iter().position(|machine| machine.node == task.node);
                let machine = machine.expect("the fabric stays");
                let node = cluster.nodes().get(task.node).expect("the fabric stays");
                let sick = task.gpus.without(node.mask(|slot| slot.healthy));
                if !node.schedulable() || !sick.is_empty() {
                    let what = format!(
                        "bound where nothing may go: allocation {} at #{index} on {} ({:?}, {:?}, sick {sick:?})",
                        allocation.id, node.name, node.liveness, node.duty
                    );
                    context.finding(Invariant::NothingLost, what);
                }
                if let Some(other) = context.journal.living_on(machine, task.gpus) {
                    let what = format!(
                        "bound too early: allocation {} at #{index} has GPUs of machine {machine} where {other:?} still runs",
                        allocation.id
                    );
                    context.finding(Invariant::NotTooEarly, what);
                }
            }
        }
        for (id, job) in cluster.jobs().iter() {
            let ended = control.ended.get(&id).copied();
            if ended.is_some_and(|ended| ended != job.state) {
                let what =
                    format!("ended is not ended: job {id} was {ended:?}, now {:?}", job.state);
                context.finding(Invariant::EndedStays, what);
            }
            if job.state.ended() && ended.is_none() {
                control.ended.insert(id, job.state);
                let ran = context.journal.done(id, job.attempt);
                if job.state == JobState::Completed && ran != job.spec.workers {
                    let what = format!(
                        "completed unfinished: job {id}: {ran} of {} workers ran to their end",
                        job.spec.workers
                    );
                    context.finding(Invariant::AllOrNone, what);
                }
            }
        }
    }
}

/// A command in a word or two, for the trace.
fn word(command: &Command) -> String {
    match command {
        Command::Report(reports) => {
            let told = reports.iter().map(|r| format!("{}/{} {:?}", r.allocation, r.rank, r.phase));
            format!("report {}", told.collect::<Vec<_>>().join(", "))
        }
        Command::CommitPlan(plan) => {
            format!("plan of {} decisions on #{}", plan.decisions.len(), plan.based_on)
        }
        Command::SubmitJob(spec) => {
            format!("submit {} {} × {}", spec.name, spec.workers, spec.resources.gpus)
        }
        Command::SetFabric(_) => "fabric".into(),
        Command::DeployFiller(spec) => format!("deploy {}", spec.name),
        Command::NodeUp(report) => format!("node {} up, boot {}", report.node, report.boot_id),
        other => format!("{other:?}"),
    }
}

/// The job that an answer speaks of.
pub(crate) fn job_of(answer: &Result<Reply, rowen_state::Refusal>) -> Option<JobId> {
    match answer {
        Ok(Reply::Job(id)) => Some(*id),
        _ => None,
    }
}
