//! State and placement joined, without IO: the same core runs in the server, in
//! `rowen sim` and under chaos.

use rowen_placement as placement;
use rowen_state::{
    Allocation, Cluster, Command, Effect, Entry, NodeId, Record, Refusal, Reply, SnapshotError,
    codec::{self, CodecError},
};

/// The answer to a command, as it travels from apply to the proposer.
pub type Answer = Result<Reply, Refusal>;

/// One replica's copy of the truth.
#[derive(Clone, Debug, Default)]
pub struct Core {
    cluster: Cluster,
}

/// What applying one entry gave.
#[derive(Debug)]
pub struct Step {
    /// For the proposer.
    pub answer: Answer,
    /// For the archive of every replica.
    pub records: Vec<Record>,
    /// For the leader alone.
    pub effects: Vec<Effect>,
    /// Something changed that a plan could use.
    pub replan: bool,
}

impl Core {
    /// An empty one at the newest cluster version, for worlds without a log of before.
    pub fn newest() -> Self {
        Core { cluster: Cluster::newest() }
    }

    /// What is true now.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Applies the entry at `index`. Fails only when the bytes are not an entry this
    /// build can read: then this replica must not go on.
    pub fn apply(&mut self, index: u64, bytes: &[u8]) -> Result<Step, CodecError> {
        let entry: Entry = codec::decode(bytes)?;
        Ok(self.apply_entry(index, &entry))
    }

    /// Likewise, from an entry that is already decoded.
    pub fn apply_entry(&mut self, index: u64, entry: &Entry) -> Step {
        let outcome = self.cluster.apply(index, entry);
        Step {
            answer: outcome.answer.expect("apply always answers"),
            records: outcome.records,
            effects: outcome.effects,
            replan: outcome.replan,
        }
    }

    /// What the planner proposes for the state as it is, if anything.
    pub fn plan(cluster: &Cluster) -> Option<Command> {
        let plan = placement::plan(cluster);
        (!plan.decisions.is_empty()).then_some(Command::CommitPlan(plan))
    }

    /// Replaces the state by a snapshot's.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.cluster = Cluster::from_snapshot(bytes)?;
        Ok(())
    }
}

/// The tasks that should run on a node, or end there with notice: each with its
/// allocation and rank. What is not among them must not run.
pub fn desired_tasks(cluster: &Cluster, node: NodeId) -> Vec<(&Allocation, usize)> {
    let Some(row) = cluster.nodes().get(node) else { return Vec::new() };
    let allocations = row.owners().into_iter().filter_map(|id| cluster.allocations().get(id));
    allocations
        .flat_map(|allocation| {
            let tasks = allocation.tasks.iter().enumerate();
            tasks
                .filter(move |(_, task)| task.node == node && task.phase.live())
                .map(move |(rank, _)| (allocation, rank))
        })
        .collect()
}
