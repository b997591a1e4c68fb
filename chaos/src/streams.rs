//! The streams between agents and replicas: values of the wire, in order, over links that may be
//! cut. A stream over a dead link looks alive to either side until that side has waited long enough.

use std::collections::BTreeMap;

use rowen_agent::core::{Epoch, TaskKey};
use rowen_api::v1::{self, AgentMessage, agent_message, server_message};
use rowen_state::{FillerId, GpuMask, JobId, Owner, TaskPhase, TaskReport};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    inbox::Arrived,
    message::{DesiredTask, Event, MachineAt, ReplicaAt, ToAgent, ToLeader},
    net::Host,
    world::World,
};

type Up = mpsc::UnboundedSender<Result<AgentMessage, Status>>;

/// All that a replica still believes to be open.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: BTreeMap<u64, Stream>,
    last: u64,
}

#[derive(Debug)]
struct Stream {
    machine: MachineAt,
    replica: ReplicaAt,
    up: Up,
    pump: tokio::task::AbortHandle,
}

impl World {
    /// An agent tries the next replica, or the one it was sent to.
    pub(crate) fn connect(&mut self, machine: MachineAt) {
        let active = self.group.active();
        let row = &mut self.machines[machine];
        let Some(agent) = row.agent.as_mut().filter(|agent| agent.session.is_none()) else {
            return;
        };
        let sent_to = agent.go_to.take().and_then(|addr| self.group.at_addr(&addr));
        agent.tried += 1;
        let replica = sent_to.unwrap_or(active[agent.tried % active.len()]);
        let life = agent.life;
        let seat = &self.group.seats[replica];
        let reached = row.link.up && row.link.down && self.reaches(machine, replica);
        let (Some(shell), Some(process), true) = (&seat.shell, &seat.process, reached) else {
            let in_ms = self.context.rng.between(100, 2_000);
            return self.context.later(in_ms, Event::Connect { machine, life });
        };
        self.streams.last += 1;
        let session = self.streams.last;
        let (up, incoming) = mpsc::unbounded_channel();
        let (shell, inbox) = (shell.clone(), self.inbox.clone());
        let pump = process.spawn(async move {
            let incoming = futures::stream::unfold(incoming, |mut incoming| async {
                incoming.recv().await.map(|message| (message, incoming))
            });
            let mut outgoing = shell.attach(Box::pin(incoming));
            drop(shell);
            while let Some(Ok(message)) = outgoing.recv().await {
                if let Some(message) = to_agent(message) {
                    inbox.push(Arrived::Said { session, message });
                }
            }
            inbox.push(Arrived::HungUp { session });
        });
        let stream = Stream { machine, replica, up, pump: pump.abort_handle() };
        self.streams.open.insert(session, stream);
        self.machines[machine].hello(session, &mut self.context);
    }

    fn reaches(&self, machine: MachineAt, replica: ReplicaAt) -> bool {
        let (here, there) = (Host::Machine(machine), Host::Replica(self.group.seats[replica].id));
        self.group.net().is_open(here, there) && self.group.net().is_open(there, here)
    }

    /// What an agent said arrives.
    pub(crate) fn goes_up(&mut self, machine: MachineAt, session: u64, message: ToLeader) {
        let Some(stream) = self.streams.open.get(&session) else { return };
        if !self.machines[machine].link.up || !self.reaches(machine, stream.replica) {
            let in_ms = self.context.rng.between(500, 6_000);
            return self.context.later(in_ms, Event::Hangup { machine, session });
        }
        let name = self.names[machine].clone();
        let row = &self.machines[machine];
        let message = from_agent(message, machine, row.gpus, name);
        if stream.up.send(Ok(message)).is_err() {
            self.context.later(1, Event::Hangup { machine, session });
        }
    }

    /// What a replica said leaves it.
    pub(crate) fn said(&mut self, session: u64, message: ToAgent) {
        let Some(stream) = self.streams.open.get(&session) else { return };
        let (machine, replica) = (stream.machine, stream.replica);
        if !self.reaches(machine, replica) {
            let in_ms = self.context.rng.between(500, 6_000);
            return self.context.later(in_ms, Event::Hangup { machine, session });
        }
        self.machines[machine].send_down(session, message, &mut self.context);
    }

    /// A replica ended a stream; over a cut link its agent finds out by the silence.
    pub(crate) fn hung_up(&mut self, session: u64) {
        let Some(stream) = self.streams.open.remove(&session) else { return };
        let machine = stream.machine;
        if self.machines[machine].link.down && self.reaches(machine, stream.replica) {
            // After what was said before, which is on its way.
            let in_ms = 30 + self.context.rng.between(1, 50);
            self.context.later(in_ms, Event::Hangup { machine, session });
        }
    }

    /// The replica notices that the agent is gone.
    pub(crate) fn closed(&mut self, session: u64) {
        if let Some(stream) = self.streams.open.remove(&session) {
            stream.pump.abort();
        }
    }

    /// A replica's process is gone, and all its streams with it.
    pub(crate) fn streams_end(&mut self, replica: ReplicaAt) {
        let open = self.streams.open.iter();
        let gone: Vec<u64> =
            open.filter(|(_, stream)| stream.replica == replica).map(|(s, _)| *s).collect();
        gone.into_iter().for_each(|session| self.hung_up(session));
    }
}

fn from_agent(message: ToLeader, machine: MachineAt, gpus: u32, node: String) -> AgentMessage {
    let kind = match message {
        ToLeader::Hello { term, boot, said_ms, healthy, tasks } => {
            let gpu = |ordinal| v1::Gpu {
                ordinal,
                healthy: healthy.contains(ordinal),
                ..v1::Gpu::default()
            };
            agent_message::Kind::Hello(v1::Hello {
                protocol: 1,
                node,
                boot_id: format!("{machine}-{boot}"),
                instance: String::new(),
                addr: format!("m{machine}"),
                gpus: (0..gpus).map(gpu).collect(),
                simulated: true,
                version: "chaos".into(),
                highest_term: term,
                ports: vec![29_500],
                running: tasks.into_iter().map(report).collect(),
                folder: format!("{machine}"),
                said_ms,
            })
        }
        ToLeader::Heartbeat { seq, generation } => {
            agent_message::Kind::Heartbeat(v1::Heartbeat { seq, generation })
        }
        ToLeader::Report { seq, tasks } => {
            let tasks = tasks.into_iter().map(report).collect();
            agent_message::Kind::Report(v1::Report { seq, tasks })
        }
        ToLeader::GpuHealth { sick } => {
            let trouble = |ordinal| match sick.contains(ordinal) {
                true => String::from("XID 79"),
                false => String::new(),
            };
            let gpu = |ordinal| v1::GpuTrouble { ordinal, trouble: trouble(ordinal) };
            let gpus = (0..gpus).map(gpu).collect();
            agent_message::Kind::GpuHealth(v1::GpuHealth { gpus })
        }
    };
    AgentMessage { kind: Some(kind) }
}

fn report(task: TaskReport) -> v1::TaskReport {
    let (phase, exit_code) = match task.phase {
        TaskPhase::Bound => (v1::TaskPhase::Unspecified, 0),
        TaskPhase::Running => (v1::TaskPhase::Running, 0),
        TaskPhase::Ready => (v1::TaskPhase::Ready, 0),
        TaskPhase::Lost => (v1::TaskPhase::Lost, 0),
        TaskPhase::Exited { code } => (v1::TaskPhase::Exited, code),
    };
    v1::TaskReport {
        allocation: task.allocation.0,
        rank: task.rank,
        epoch: Some(v1::Epoch { incarnation: task.epoch.incarnation, index: task.epoch.index }),
        phase: phase.into(),
        exit_code,
        message: task.message,
        port: task.port.into(),
    }
}

fn to_agent(message: v1::ServerMessage) -> Option<ToAgent> {
    Some(match message.kind? {
        server_message::Kind::Welcome(welcome) => ToAgent::Welcome { term: welcome.term },
        server_message::Kind::HeartbeatAck(ack) => {
            ToAgent::HeartbeatAck { seq: ack.seq, term: ack.term }
        }
        server_message::Kind::ReportAck(ack) => ToAgent::ReportAck { seq: ack.seq },
        server_message::Kind::Desired(desired) => ToAgent::Desired {
            generation: desired.generation,
            term: desired.term,
            tasks: desired.tasks.into_iter().map(desired_task).collect(),
        },
        server_message::Kind::Refused(refused) => ToAgent::Refused { leader: refused.leader },
        _ => return None,
    })
}

fn desired_task(task: v1::DesiredTask) -> DesiredTask {
    let epoch = task.epoch.unwrap_or_default();
    let epoch = Epoch { incarnation: epoch.incarnation, index: epoch.index };
    let owner = task.owner.unwrap_or_default();
    let owner = match owner.kind() {
        v1::OwnerKind::Filler => Owner::Instance { filler: FillerId(owner.id), number: owner.part },
        _ => Owner::Gang { job: JobId(owner.id), attempt: owner.part as u32 },
    };
    DesiredTask {
        key: TaskKey { allocation: task.allocation, rank: task.rank, epoch },
        owner,
        gpus: task.gpus.into_iter().collect::<GpuMask>(),
        notice_ms: task.notice_ms,
        stop: task.stop.map(|stop| (stop.withdraw_ms.min(stop.remaining_ms), stop.remaining_ms)),
    }
}
