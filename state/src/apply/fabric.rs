//! A new fabric: nodes come and go, what runs must not be touched.

use std::collections::{BTreeMap, BTreeSet};

use rowen_topology::{FabricRecord, NodeRecord};

use super::Answer;
use crate::{Cluster, Code, Node, NodeId, Outcome, Refusal, Reply};

impl Cluster {
    pub(super) fn set_fabric(&mut self, record: &FabricRecord, outcome: &mut Outcome) -> Answer {
        record.check_limits().map_err(|error| Refusal::new(Code::Invalid, error.to_string()))?;
        let mut wanted: BTreeMap<&str, &NodeRecord> =
            record.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
        let mut gone = Vec::new();
        for node in self.nodes.values() {
            let same = wanted.get(node.name.as_str()).is_some_and(|record| same_gpus(node, record));
            if !same {
                if !node.owners().is_empty() || !node.holders().is_empty() {
                    return Err(in_use(node));
                }
                gone.push(node.id);
            }
        }
        for id in gone {
            self.retire(id);
        }
        let now_ms = self.meta.now_ms;
        let kept: Vec<NodeId> = self.nodes.iter().map(|(id, _)| id).collect();
        for id in kept {
            let node = self.nodes.get_mut(id).expect("just listed");
            let record = wanted.remove(node.name.as_str()).expect("the others are gone");
            (node.cpus, node.memory_mib) = (record.cpus, record.memory_mib);
        }
        // In the record's order, so that ids follow what the operator wrote.
        for record in record.nodes.iter().filter(|node| wanted.contains_key(node.name.as_str())) {
            self.meta.last_node += 1;
            let id = NodeId(self.meta.last_node);
            self.nodes.insert(id, Node::new(id, record, now_ms));
        }
        let new: BTreeSet<String> = wanted.into_keys().map(str::to_owned).collect();
        self.fabric = record.clone().into();
        self.rebuild_derived();
        self.forget_parts(&new);
        outcome.replan = true;
        Ok(Reply::Done)
    }

    fn retire(&mut self, id: NodeId) {
        let node = self.nodes.remove(id).expect("the caller looked it up");
        for slot in node.gpus {
            for (total, ms) in
                self.meta.retired_ms.iter_mut().zip(slot.meter.totals(self.meta.now_ms))
            {
                *total += ms;
            }
        }
    }
}

fn same_gpus(node: &Node, record: &NodeRecord) -> bool {
    node.gpu_model == record.gpu_model && node.gpus.len() == usize::from(record.gpu_count)
}

fn in_use(node: &Node) -> Refusal {
    Refusal::new(
        Code::Conflict,
        format!(
            "nodes: {} has allocations and would be taken out or changed; drain it first",
            node.name
        ),
    )
}
