//! Into which phase a fault fell: a fault that never met a gang being bound has
//! tested nothing of binding.
//!
//! Owns the words for phases and the table of fault × phase.

use std::collections::BTreeMap;

use rowen_state::{Cluster, JobState, NodeId, TaskPhase};

/// In the order of the table's columns, busiest last.
pub(crate) const PHASES: [&str; 5] = ["idle", "running", "starting", "holding", "stopping"];

/// What a node is at, or with none the whole cluster: the busiest that applies.
pub(crate) fn phase(cluster: &Cluster, node: Option<NodeId>) -> &'static str {
    let mut busiest = 0;
    for allocation in cluster.allocations().values() {
        let here = |task: &&rowen_state::Task| node.is_none_or(|node| task.node == node);
        for task in allocation.tasks.iter().filter(here) {
            let at = match task.phase {
                _ if allocation.stop.is_some() => 4,
                TaskPhase::Bound => 2,
                _ => 1,
            };
            busiest = busiest.max(at);
        }
    }
    let holds = match node {
        Some(node) => cluster.nodes().get(node).is_some_and(|node| !node.holders().is_empty()),
        None => cluster.jobs().values().any(|job| job.state == JobState::Holding),
    };
    PHASES[if holds { busiest.max(3) } else { busiest }]
}

/// Fault × phase, for people.
pub(crate) fn table(faults: &BTreeMap<(&'static str, &'static str), u64>) -> String {
    let mut names: Vec<&str> = faults.keys().map(|(fault, _)| *fault).collect();
    names.dedup();
    let mut text = format!("{:>20}", "fault × phase");
    PHASES.iter().for_each(|phase| text += &format!("{phase:>10}"));
    text += &format!("{:>10}\n", "all");
    for name in names {
        text += &format!("{name:>20}");
        let counts = PHASES.map(|phase| faults.get(&(name, phase)).copied().unwrap_or(0));
        counts.iter().for_each(|count| text += &format!("{count:>10}"));
        text += &format!("{:>10}\n", counts.iter().sum::<u64>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_a_fault_and_a_column_a_phase() {
        let faults =
            [(("cut link", "idle"), 2), (("cut link", "holding"), 3), (("reboot", "idle"), 1)];
        let table = table(&faults.into_iter().collect());
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[1], ["cut", "link", "2", "0", "0", "3", "0", "5"]);
        assert_eq!(phase(&Cluster::default(), None), "idle");
    }
}
