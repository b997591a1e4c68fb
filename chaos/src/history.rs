//! What clients asked and what they were answered: one operation a line, as JSON.
//!
//! Owns the words of a history, so that a simulated world and real processes
//! write the same one and the same checker reads it. Never judges it.

use std::io::{BufRead, Write};

use anyhow::Context as _;
use rowen_state::{
    Cluster, Code, Command, Duty, FillerId, FillerState, JobId, JobState, NodeId, Refusal, Reply,
};
use serde::{Deserialize, Serialize};

/// What a client asks. Reads are answered with [`Answer`]s that show a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", content = "args", rename_all = "snake_case")]
pub(crate) enum Op {
    Submit { name: String },
    Cancel { job: JobId },
    Requeue { job: JobId },
    Deploy { name: String },
    DrainFiller { filler: FillerId },
    RemoveFiller { filler: FillerId },
    Cordon { node: NodeId },
    Drain { node: NodeId },
    Undrain { node: NodeId },
    ReadJob { job: JobId },
    ReadFiller { name: String },
    ReadNode { node: NodeId },
    ReadGpu { node: NodeId, gpu: u32 },
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Job(JobId),
    Filler(FillerId),
    Refused(Code),
    /// Of a read: there is no such thing.
    Nothing,
    SeenJob {
        name: String,
        state: JobState,
        attempt: u32,
    },
    SeenFiller {
        filler: FillerId,
        state: FillerState,
    },
    SeenNode {
        duty: Duty,
    },
    /// `epoch`: incarnation and index of the allocation that has it; none: nobody has it.
    SeenGpu {
        epoch: Option<(u64, u64)>,
    },
}

/// One line. Whoever got no answer leaves `return_ms` and `result` open: a write may
/// then take effect at any time after `call_ms`, or never.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) client: u64,
    #[serde(flatten)]
    pub(crate) op: Op,
    pub(crate) call_ms: u64,
    pub(crate) return_ms: Option<u64>,
    pub(crate) result: Option<Answer>,
    /// Log index of the entry that did it, or that the state read was at.
    pub(crate) index: Option<u64>,
}

/// All operations of a run, in the order of their calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) operations: Vec<Operation>,
}

impl History {
    /// A client asks; what is given back names the call for [`History::returned`].
    pub(crate) fn called(&mut self, client: u64, op: Op, call_ms: u64) -> usize {
        let (return_ms, result, index) = (None, None, None);
        self.operations.push(Operation { client, op, call_ms, return_ms, result, index });
        self.operations.len() - 1
    }

    /// It was answered. The first answer counts.
    pub(crate) fn returned(&mut self, call: usize, return_ms: u64, result: Answer, index: u64) {
        let operation = &mut self.operations[call];
        if operation.return_ms.is_none() {
            operation.return_ms = Some(return_ms);
            (operation.result, operation.index) = (Some(result), Some(index));
        }
    }

    /// JSON lines.
    pub(crate) fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        for operation in &self.operations {
            serde_json::to_writer(&mut *out, operation)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Reads what [`History::write`] wrote.
    pub(crate) fn read(from: impl BufRead) -> anyhow::Result<History> {
        let mut history = History::default();
        for (number, line) in (1..).zip(from.lines()) {
            let operation = serde_json::from_str(&line?)
                .with_context(|| format!("line {number}: not an operation; write one a line"))?;
            history.operations.push(operation);
        }
        Ok(history)
    }
}

impl Op {
    /// What a command asks, if a client can ask it.
    pub(crate) fn of(command: &Command) -> Option<Op> {
        Some(match command {
            Command::SubmitJob(spec) => Op::Submit { name: spec.name.clone() },
            Command::CancelJob(job) => Op::Cancel { job: *job },
            Command::RequeueJob(job) => Op::Requeue { job: *job },
            Command::DeployFiller(spec) => Op::Deploy { name: spec.name.clone() },
            Command::DrainFiller(filler) => Op::DrainFiller { filler: *filler },
            Command::RemoveFiller(filler) => Op::RemoveFiller { filler: *filler },
            Command::CordonNode { node, .. } => Op::Cordon { node: *node },
            Command::DrainNode { node, .. } => Op::Drain { node: *node },
            Command::UndrainNode(node) => Op::Undrain { node: *node },
            _ => return None,
        })
    }

    /// Whether it only looks.
    pub(crate) fn reads(&self) -> bool {
        matches!(
            self,
            Op::ReadJob { .. } | Op::ReadFiller { .. } | Op::ReadNode { .. } | Op::ReadGpu { .. }
        )
    }

    /// A word for reports.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Op::Submit { .. } => "submit",
            Op::Cancel { .. } => "cancel",
            Op::Requeue { .. } => "requeue",
            Op::Deploy { .. } => "deploy",
            Op::DrainFiller { .. } => "drain filler",
            Op::RemoveFiller { .. } => "remove filler",
            Op::Cordon { .. } => "cordon",
            Op::Drain { .. } => "drain",
            Op::Undrain { .. } => "undrain",
            Op::ReadJob { .. } => "read job",
            Op::ReadFiller { .. } => "read filler",
            Op::ReadNode { .. } => "read node",
            Op::ReadGpu { .. } => "read GPU",
        }
    }

    /// What a read of a state shows; `None` for a write.
    pub(crate) fn look(&self, cluster: &Cluster) -> Option<Answer> {
        let seen = match self {
            Op::ReadJob { job } => cluster.jobs().get(*job).map(|job| Answer::SeenJob {
                name: job.spec.name.clone(),
                state: job.state,
                attempt: job.attempt,
            }),
            Op::ReadFiller { name } => cluster
                .filler_named(name)
                .map(|filler| Answer::SeenFiller { filler: filler.id, state: filler.state }),
            Op::ReadNode { node } => {
                cluster.nodes().get(*node).map(|node| Answer::SeenNode { duty: node.duty })
            }
            Op::ReadGpu { node, gpu } => {
                cluster.nodes().get(*node).and_then(|node| node.gpus.get(*gpu as usize)).map(
                    |slot| {
                        let owner = slot.owner.and_then(|owner| cluster.allocations().get(owner));
                        let epoch = owner.map(|owner| (owner.epoch.incarnation, owner.epoch.index));
                        Answer::SeenGpu { epoch }
                    },
                )
            }
            _ => return None,
        };
        Some(seen.unwrap_or(Answer::Nothing))
    }
}

impl From<&Result<Reply, Refusal>> for Answer {
    fn from(answer: &Result<Reply, Refusal>) -> Answer {
        match answer {
            Ok(Reply::Job(id)) => Answer::Job(*id),
            Ok(Reply::Filler(id)) => Answer::Filler(*id),
            Ok(Reply::Done | Reply::Planned { .. } | Reply::Replica(_)) => Answer::Done,
            Err(refusal) => Answer::Refused(refusal.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let mut history = History::default();
        let submit = history.called(1, Op::Submit { name: "a".into() }, 10);
        let read = history.called(2, Op::ReadJob { job: JobId(1) }, 20);
        history.called(1, Op::Cancel { job: JobId(1) }, 30);
        history.returned(submit, 15, Answer::Job(JobId(1)), 7);
        history.returned(submit, 16, Answer::Done, 9);
        let seen = Answer::SeenJob { name: "a".into(), state: JobState::Queued, attempt: 0 };
        history.returned(read, 25, seen, 8);
        let mut bytes = Vec::new();
        history.write(&mut bytes).unwrap();
        let lines: Vec<&str> = std::str::from_utf8(&bytes).unwrap().lines().collect();
        assert_eq!(
            lines[0],
            r#"{"client":1,"op":"submit","args":{"name":"a"},"call_ms":10,"return_ms":15,"result":{"job":1},"index":7}"#,
            "the first answer counts"
        );
        assert!(lines[2].ends_with(r#""return_ms":null,"result":null,"index":null}"#), "left open");
        let again = History::read(&bytes[..]).unwrap();
        assert_eq!(again.operations, history.operations);
        let error = History::read(&b"{}\n"[..]).unwrap_err().to_string();
        assert!(error.starts_with("line 1: "), "{error}");
    }
}
