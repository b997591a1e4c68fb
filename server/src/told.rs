//! What each node was last told to run: whether a change of its desired state is news that must
//! reach it at once.
//!
//! A task that is over disappears from its node's desired state, and all that the agent does about
//! it is to forget it. Under load that is half of all pushes, and the next task for the same GPU
//! follows within milliseconds: the two can go as one. Pure; never decides what is desired.

use std::collections::{BTreeMap, BTreeSet};

use rowen_state::{AllocationId, Cluster, NodeId};

use crate::core::desired_tasks;

/// A task as far as its agent has to act on it: which one, and whether it was told to end.
type Act = (AllocationId, usize, bool);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Told {
    nodes: BTreeMap<NodeId, Vec<Act>>,
    /// Nodes with a change that can wait.
    later: BTreeSet<NodeId>,
}

impl Told {
    /// Of nodes whose desired state has changed, those that must hear of it now. The others are
    /// kept for [`Told::rest`].
    pub(crate) fn news(
        &mut self,
        view: &Cluster,
        changed: impl IntoIterator<Item = NodeId>,
    ) -> Vec<NodeId> {
        let mut now = Vec::new();
        for node in changed {
            let acts = desired_tasks(view, node).into_iter();
            let acts: Vec<Act> = acts
                .map(|(allocation, rank)| (allocation.id, rank, allocation.stop.is_some()))
                .collect();
            let before = self.nodes.entry(node).or_default();
            if acts.iter().all(|act| before.contains(act)) {
                self.later.insert(node);
            } else {
                self.later.remove(&node);
                now.push(node);
            }
            *before = acts;
        }
        now
    }

    /// The nodes whose change has waited long enough.
    pub(crate) fn rest(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.later)
    }
}

#[cfg(test)]
mod tests {
    use rowen_state::{Command, Entry, JobId, TaskPhase, TaskReport};

    use super::*;
    use crate::{convert, core::Core};

    const NODE: NodeId = NodeId(1);

    fn apply(core: &mut Core, command: Command) {
        let entry = Entry { at_ms: 1_000, principal: "test".into(), request: None, command };
        let index = core.cluster().applied() + 1;
        core.apply_entry(index, &entry).answer.expect("the command is right");
    }

    /// One node of two GPUs, and two jobs on it.
    fn two_jobs() -> Core {
        let mut core = Core::default();
        let fabric = rowen_topology::drawing::parse("block a: n1 x2");
        apply(&mut core, Command::SetFabric(fabric.expect("it is a drawing")));
        let gpu = |ordinal| rowen_api::v1::Gpu { ordinal, healthy: true, ..Default::default() };
        let hello = rowen_api::v1::Hello {
            boot_id: "boot".into(),
            gpus: (0..2).map(gpu).collect(),
            ..Default::default()
        };
        apply(&mut core, Command::NodeUp(convert::node_report(NODE, &hello).expect("a hello")));
        for _ in 0..2 {
            let spec = rowen_api::v1::JobSpec {
                name: "job".into(),
                workers: 1,
                resources: Some(rowen_api::v1::Resources { gpus: 1, ..Default::default() }),
                command: vec!["true".into()],
                ..Default::default()
            };
            let spec = convert::job_spec_from_proto(spec).expect("a job");
            apply(&mut core, Command::SubmitJob(spec));
        }
        let plan = Core::plan(core.cluster()).expect("they fit");
        apply(&mut core, plan);
        core
    }

    fn exits(core: &mut Core) {
        let allocation = core.cluster().allocations().values().next().expect("it runs");
        let report = TaskReport {
            node: NODE,
            allocation: allocation.id,
            rank: 0,
            epoch: allocation.epoch,
            phase: TaskPhase::Exited { code: 0 },
            port: 0,
            message: String::new(),
        };
        apply(core, Command::Report(vec![report]));
    }

    #[test]
    fn a_start_and_a_stop_are_news_and_an_end_can_wait() {
        let mut core = two_jobs();
        let mut told = Told::default();
        assert_eq!(told.news(core.cluster(), [NODE]), [NODE], "two tasks start");
        assert_eq!(told.news(core.cluster(), [NODE]), [], "as it was told");
        assert_eq!(told.rest(), [NODE].into());
        exits(&mut core);
        assert_eq!(told.news(core.cluster(), [NODE]), [], "one is over");
        apply(&mut core, Command::CancelJob(JobId(2)));
        assert_eq!(told.news(core.cluster(), [NODE]), [NODE], "the other has to end");
        assert_eq!(told.rest(), [].into(), "one push was enough for both");
        exits(&mut core);
        assert_eq!(told.news(core.cluster(), [NODE]), []);
        assert_eq!(told.rest(), [NODE].into(), "it is told in the end");
        assert_eq!(told.rest(), [].into());
    }
}
