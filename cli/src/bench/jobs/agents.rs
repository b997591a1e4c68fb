//! Agents by the thousand in one process: the production connection and the production core, with
//! a shell around them that launches nothing. A task runs from the moment it is launched until a
//! time drawn for it is over.
//!
//! Each has a connection of its own, as on a machine of its own. What is left out beside the
//! processes is the disk: nothing survives this process, so nothing needs to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rowen_agent::core::{Action, Core, Fence, Phase, TaskKey};
use rowen_agent::stream::{self, Link, Outbox};
use rowen_agent::{Simulate, clock, discover, wire};
use rowen_api::v1::{self, AgentMessage, agent_message, server_message};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::journal::{self, Journal};

/// An unacknowledged report is sent again after this, as the production shell does.
const RESEND_MS: u64 = 1000;
/// The shell looks at the clock at least this often.
const TICK_MS: u64 = 500;
/// Exit code of a task that was told to end.
const TERMINATED: i32 = 143;

/// The running agents. Dropping it ends them, as if all machines lost power.
pub(super) struct Agents {
    tasks: JoinSet<()>,
}

/// What all agents share.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) servers: Vec<String>,
    pub(super) journal: Arc<Journal>,
    /// A task runs for something between half of this and one and a half times this.
    pub(super) run_ms: u64,
}

impl Agents {
    /// Starts the agent of each node.
    pub(super) fn start(nodes: &[v1::FabricNode], setting: &Setting) -> Agents {
        let mut tasks = JoinSet::new();
        for (number, node) in nodes.iter().enumerate() {
            let shell = Shell::new(number, node, setting.clone());
            tasks.spawn(shell.run());
        }
        Agents { tasks }
    }

    /// Returns when one of them has ended by itself, which none should.
    pub(super) async fn failed(&mut self) {
        self.tasks.join_next().await;
    }
}

/// The shell of one agent.
struct Shell {
    number: usize,
    node: String,
    gpus: Vec<v1::Gpu>,
    setting: Setting,
    core: Core,
    wanted: BTreeSet<TaskKey>,
    /// Job number and id of each task that is wanted or that the core still knows.
    jobs: BTreeMap<TaskKey, (usize, u64)>,
    /// When running tasks end.
    ends: BTreeSet<(u64, TaskKey)>,
    /// What each report that is under way said: which tasks, and whether they are over.
    said: BTreeMap<u64, Vec<(TaskKey, bool)>>,
    outbox: Option<Outbox>,
    welcomed: bool,
    heartbeat_ms: u64,
    heartbeat_at_ms: u64,
    drop_link: Arc<Notify>,
    draws: u64,
}

impl Shell {
    fn new(number: usize, node: &v1::FabricNode, setting: Setting) -> Shell {
        let simulate = Simulate {
            gpus: node.gpu_count as u16,
            model: node.gpu_model.clone(),
            memory_mib: node.gpu_memory_mib,
        };
        Shell {
            number,
            node: node.name.clone(),
            gpus: discover::simulated(&node.name, &simulate),
            setting,
            core: Core::new(Fence::default(), BTreeMap::new(), 0),
            wanted: BTreeSet::new(),
            jobs: BTreeMap::new(),
            ends: BTreeSet::new(),
            said: BTreeMap::new(),
            outbox: None,
            welcomed: false,
            heartbeat_ms: 1000,
            heartbeat_at_ms: 0,
            drop_link: Arc::new(Notify::new()),
            draws: number as u64,
        }
    }

    async fn run(mut self) {
        let (links_in, mut links) = mpsc::channel(256);
        let (node, servers) = (self.node.clone(), self.setting.servers.clone());
        let link = stream::run(&node, servers, links_in, self.drop_link.clone());
        tokio::pin!(link);
        loop {
            tokio::select! {
                end = &mut link => {
                    let why = end.err().map(|error| format!("{error:#}")).unwrap_or_default();
                    return self.setting.journal.fault(format!("agent of {node} ended: {why}"));
                }
                Some(link) = links.recv() => self.on_link(link),
                () = tokio::time::sleep(self.until_next()) => {}
            }
            // What has come meanwhile makes one turn, and so one report.
            while let Ok(link) = links.try_recv() {
                self.on_link(link);
            }
            self.turn();
        }
    }

    fn until_next(&self) -> Duration {
        let now = clock::boottime_ms();
        let end = self.ends.first().map_or(u64::MAX, |(at, _)| *at);
        let beat = if self.welcomed { self.heartbeat_at_ms } else { u64::MAX };
        Duration::from_millis(end.min(beat).saturating_sub(now).min(TICK_MS))
    }

    fn on_link(&mut self, link: Link) {
        match link {
            Link::Up(outbox) => {
                (self.outbox, self.welcomed) = (Some(outbox), false);
                self.said.clear(); // what was said there is said again here
                let hello = self.hello();
                self.send(agent_message::Kind::Hello(hello));
            }
            Link::Down => (self.outbox, self.welcomed) = (None, false),
            Link::Message(message) => {
                let stale = message.kind.is_some_and(|kind| !self.on_message(kind));
                if stale {
                    self.outbox = None;
                    self.drop_link.notify_one();
                }
            }
        }
    }

    /// False: from a deposed leader.
    fn on_message(&mut self, kind: server_message::Kind) -> bool {
        use server_message::Kind;
        match kind {
            Kind::Welcome(welcome) => {
                if self.core.welcome(welcome.term, welcome.node_lease_ms).is_err() {
                    return false;
                }
                (self.welcomed, self.heartbeat_at_ms) = (true, 0);
                self.heartbeat_ms = welcome.heartbeat_ms.max(10);
            }
            Kind::HeartbeatAck(ack) => match self.core.heartbeat_ack(ack.seq, ack.term) {
                Ok(Some(_)) => self.setting.journal.renewed(self.number, ack.term),
                Ok(None) => {}
                Err(_) => return false,
            },
            Kind::Desired(desired) => return self.on_desired(&desired),
            Kind::ReportAck(ack) => self.on_report_ack(ack.seq),
            Kind::ReadLog(_) | Kind::StopLog(_) | Kind::Refused(_) => {}
        }
        true
    }

    fn on_desired(&mut self, message: &v1::Desired) -> bool {
        let Ok(taken) = self.core.desire(wire::desired(message, clock::boottime_ms())) else {
            return false;
        };
        if !taken {
            return true;
        }
        self.wanted = message.tasks.iter().map(wire::key).collect();
        let mut owners = BTreeSet::new();
        for task in &message.tasks {
            for gpu in task.gpus.iter().filter(|gpu| !owners.insert(**gpu)) {
                self.fault(format!("GPU {gpu} was given to two tasks at once"));
            }
            let owner = task.owner.clone().unwrap_or_default();
            match journal::number(&owner.name) {
                Some(number) => drop(self.jobs.insert(wire::key(task), (number, owner.id))),
                None => self.fault(format!("was sent a task of {:?}", owner.name)),
            }
        }
        self.forget();
        true
    }

    fn on_report_ack(&mut self, seq: u64) {
        let said = self.said.remove(&seq).unwrap_or_default();
        let known = said.iter().filter_map(|(key, over)| Some((self.jobs.get(key)?.0, *over)));
        self.setting.journal.reported(known);
        self.core.report_ack(seq);
        self.forget();
    }

    /// What is neither wanted nor known to the core is over.
    fn forget(&mut self) {
        let (core, wanted) = (&self.core, &self.wanted);
        self.jobs.retain(|key, _| wanted.contains(key) || core.task(key).is_some());
    }

    fn turn(&mut self) {
        let now = clock::boottime_ms();
        while let Some((at, key)) = self.ends.first().copied().filter(|(at, _)| *at <= now) {
            self.ends.remove(&(at, key));
            self.core.observe(key, Phase::Exited { code: 0, message: String::new() });
        }
        for action in self.core.reconcile(now) {
            match action {
                Action::Persist => {} // there is no disk to outlive us
                Action::Launch(key) => self.launch(key, now),
                Action::Stop(key, stop) => {
                    self.ends.retain(|(_, ends)| *ends != key);
                    let message = stop.reason;
                    self.core.observe(key, Phase::Exited { code: TERMINATED, message });
                }
                Action::Refuse(key, why) => self.fault(format!("refused {key:?}: {why}")),
            }
        }
        self.report(now);
        if self.welcomed && now >= self.heartbeat_at_ms {
            self.heartbeat_at_ms = now + self.heartbeat_ms;
            let (seq, generation) = self.core.heartbeat(now);
            self.send(agent_message::Kind::Heartbeat(v1::Heartbeat { seq, generation }));
        }
    }

    fn launch(&mut self, key: TaskKey, now: u64) {
        let gpus = self.core.task(&key).map(|task| task.gpus.clone()).unwrap_or_default();
        let others =
            self.core.tasks().iter().filter(|(other, task)| **other != key && task.lives());
        let mut shared = others.filter(|(_, task)| task.gpus.iter().any(|gpu| gpus.contains(gpu)));
        if let Some((other, _)) = shared.next() {
            self.fault(format!("{key:?} was launched beside {other:?} on one GPU"));
        }
        if let Some((number, id)) = self.jobs.get(&key) {
            self.setting.journal.launched(*number, *id);
        }
        self.core.observe(key, Phase::Running);
        let run_ms = self.setting.run_ms / 2 + self.draw() % self.setting.run_ms.max(1);
        self.ends.insert((now + run_ms, key));
    }

    fn report(&mut self, now: u64) {
        if !self.welcomed {
            return;
        }
        let Some((seq, keys)) = self.core.report(now, RESEND_MS) else { return };
        let tasks = keys.iter().filter_map(|key| Some((*key, self.core.task(key)?)));
        let tasks: Vec<_> = tasks.collect();
        let said = tasks.iter().map(|(key, task)| (*key, !task.lives())).collect();
        let tasks = tasks.iter().map(|(key, task)| wire::report(key, task)).collect();
        self.said.insert(seq, said);
        self.send(agent_message::Kind::Report(v1::Report { seq, tasks }));
    }

    fn hello(&self) -> v1::Hello {
        let tasks = self.core.tasks().iter().filter(|(_, task)| task.phase != Phase::Starting);
        v1::Hello {
            protocol: 1,
            node: self.node.clone(),
            boot_id: clock::boot_id().unwrap_or_default(),
            instance: self.number.to_string(),
            addr: "127.0.0.1".into(),
            gpus: self.gpus.clone(),
            simulated: true,
            version: env!("CARGO_PKG_VERSION").into(),
            highest_term: self.core.term(),
            ports: Vec::new(),
            running: tasks.map(|(key, task)| wire::report(key, task)).collect(),
            folder: format!("bench-{}", self.number),
            said_ms: clock::boottime_ms(),
        }
    }

    fn send(&mut self, kind: agent_message::Kind) {
        let Some(outbox) = &self.outbox else { return };
        if outbox.control.try_send(AgentMessage { kind: Some(kind) }).is_err() {
            self.outbox = None;
            self.drop_link.notify_one();
        }
    }

    fn fault(&self, what: String) {
        self.setting.journal.fault(format!("{}: {what}", self.node));
    }

    /// splitmix64: the same agent draws the same times in every run.
    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.draws ^ (self.draws >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
