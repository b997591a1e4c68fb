//! Parts of the fabric become faulty and are mended: what follows for what runs there.

use std::{collections::BTreeSet, sync::Arc};

use rowen_topology::FaultyLink;

use super::{Answer, not_found};
use crate::{
    Cluster, Code, GpuMask, NodeId, Outcome, Owner, Part, PartReport, Refusal, Reply, Seer,
    StopReason,
    cluster::clip,
    health::{self, FAULTS, WHOLE_MILLI},
};

impl Cluster {
    pub(super) fn set_health(&mut self, reports: &[PartReport], outcome: &mut Outcome) -> Answer {
        health::validate(reports)?;
        for report in reports {
            self.check_part(&report.part)?;
        }
        let known = self.health.rows();
        let new = reports.iter().filter(|report| !known.contains_key(&report.part)).count();
        if known.len() + new > FAULTS {
            let problem = format!("{FAULTS} parts are faulty already; mend some, or take them out");
            return Err(Refusal::new(Code::Exhausted, problem));
        }
        let mut changed = Vec::new();
        for report in reports {
            if self.health.hear(report, clip(report.reason.clone()), self.meta.now_ms) {
                changed.push(report.part.clone());
            }
        }
        self.health_changed(&changed, outcome);
        Ok(Reply::Done)
    }

    /// A part that is not in the fabric cannot be faulty: a misspelt name must not go unheard.
    pub(crate) fn check_part(&self, part: &Part) -> Result<(), Refusal> {
        let leaf_of = |name: &String| {
            let known = self.fabric.leafs.iter().find(|leaf| leaf.name == *name);
            known.ok_or_else(|| not_found("leaf", name))
        };
        match part {
            Part::Gpu { node, gpu } | Part::Link(FaultyLink::NvLink { node, gpu }) => {
                let row = self.node_named(node).ok_or_else(|| not_found("node", node))?;
                match usize::from(*gpu) < row.gpus.len() {
                    true => Ok(()),
                    false => Err(not_found("GPU", format!("{gpu} in {node}"))),
                }
            }
            Part::Link(FaultyLink::Rail { node, leaf }) => {
                let row = self.node_named(node).ok_or_else(|| not_found("node", node))?;
                leaf_of(leaf)?;
                let pos = self.pos_of(row.id).expect("every node of the fabric has a position");
                let record = &self.fabric.nodes[self.derived.index.node_record(pos)];
                match record.leafs.contains(leaf) {
                    true => Ok(()),
                    false => Err(not_found("link", format!("of {node} to {leaf}"))),
                }
            }
            Part::Link(FaultyLink::Uplink { leaf, spine }) => {
                match leaf_of(leaf)?.spines.contains(spine) {
                    true => Ok(()),
                    false => Err(not_found("link", format!("of {leaf} to {spine}"))),
                }
            }
        }
    }

    /// What has been better for long enough is trusted. For every tick.
    pub(super) fn mend_parts(&mut self, outcome: &mut Outcome) {
        let mended = self.health.mend(self.meta.now_ms);
        self.health_changed(&mended, outcome);
    }

    /// What an agent says of its node's GPUs when it comes.
    pub(super) fn gpus_seen(&mut self, id: NodeId, healthy: GpuMask, outcome: &mut Outcome) {
        let node = self.nodes.get(id).expect("the caller looked it up");
        let (name, count) = (node.name.clone(), node.gpus.len() as u16);
        let mut changed = Vec::new();
        for gpu in 0..count {
            let left_milli = if healthy.contains(gpu.into()) { WHOLE_MILLI } else { 0 };
            let part = Part::Gpu { node: name.clone(), gpu };
            let known = self.health.rows().contains_key(&part);
            if left_milli == WHOLE_MILLI && !known {
                continue; // as almost always
            }
            let reason = String::from("its agent found it unfit when it came");
            let report = PartReport { part, left_milli, mended: false, seer: Seer::Agent, reason };
            if self.health.hear(&report, report.reason.clone(), self.meta.now_ms) {
                changed.push(report.part);
            }
        }
        self.health_changed(&changed, outcome);
    }

    /// A new fabric: what is no longer in it cannot be faulty, and what is `new` is not yet.
    pub(super) fn forget_parts(&mut self, new: &BTreeSet<String>) {
        let of_new = |part: &Part| match part {
            Part::Gpu { node, .. }
            | Part::Link(FaultyLink::NvLink { node, .. } | FaultyLink::Rail { node, .. }) => {
                new.contains(node)
            }
            Part::Link(FaultyLink::Uplink { .. }) => false,
        };
        let parts = self.health.rows().keys();
        let gone = parts.filter(|part| of_new(part) || self.check_part(part).is_err());
        for part in gone.cloned().collect::<Vec<_>>() {
            self.health.forget(&part);
        }
        self.derive_impaired();
    }

    fn health_changed(&mut self, parts: &[Part], outcome: &mut Outcome) {
        if parts.iter().any(|part| matches!(part, Part::Link(_))) {
            self.derive_impaired();
            outcome.replan = true;
        }
        for part in parts {
            let Part::Gpu { node, gpu } = part else { continue };
            let id = self.node_named(node).expect("its part was checked").id;
            let healthy = self.health.counts_milli(part) >= WHOLE_MILLI;
            let row = self.health.rows().get(part);
            let reason = row.map_or_else(String::new, |health| health.reason.clone());
            self.set_gpu(id, u32::from(*gpu), healthy, &reason, outcome);
        }
    }

    /// A GPU that is down takes nothing new, and what runs there is ended with its notice, as on a
    /// node that is drained: a program may still write its checkpoint.
    fn set_gpu(
        &mut self,
        id: NodeId,
        gpu: u32,
        healthy: bool,
        reason: &str,
        outcome: &mut Outcome,
    ) {
        let now_ms = self.meta.now_ms;
        let node = self.nodes.get_mut(id).expect("the caller looked it up");
        let slot = &mut node.gpus[gpu as usize];
        if slot.healthy == healthy {
            return;
        }
        slot.healthy = healthy;
        let (owner, held) = (slot.owner, slot.held);
        node.meter_unowned(now_ms);
        outcome.replan = true;
        if healthy {
            return;
        }
        let said = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let why = format!("GPU {gpu} of {} is down{said}", node.name);
        if let Some(job) = held {
            self.release_hold(job, &why, outcome);
        }
        let Some(owner) = owner else { return };
        match self.allocations.get(owner).map(|allocation| allocation.owner) {
            Some(Owner::Gang { job, .. }) => {
                self.stop_gang(job, StopReason::GpuDown, &why, outcome);
            }
            Some(Owner::Instance { .. }) => self.stop(owner, StopReason::GpuDown, outcome),
            None => {}
        }
    }
}

impl Cluster {
    /// At the rise to the version that knows of it: GPUs that agents had found unfit before.
    pub(crate) fn adopt_sick_gpus(&mut self) {
        let sick = |node: &crate::Node| {
            let gpus = (0u16..).zip(&node.gpus).filter(|(_, slot)| !slot.healthy);
            let part = |(gpu, _)| Part::Gpu { node: node.name.clone(), gpu };
            gpus.map(part).collect::<Vec<_>>()
        };
        for part in self.nodes.values().flat_map(sick).collect::<Vec<_>>() {
            let reason = String::from("its agent found it unfit when it came");
            let report =
                PartReport { part, left_milli: 0, mended: false, seer: Seer::Agent, reason };
            self.health.hear(&report, report.reason.clone(), self.meta.now_ms);
        }
    }

    /// Brings up to date which nodes are slowed down by faulty links.
    pub(crate) fn derive_impaired(&mut self) {
        let faults = health::link_faults(self.health.rows().iter());
        let slow = rowen_topology::impaired(&self.fabric, &self.derived.index, &faults);
        self.derived.impaired = Arc::new(slow);
    }
}
