//! Cordon, drain, undrain: what the operator wants of a node.

use super::{Answer, not_found};
use crate::{Cluster, Duty, NodeId, Outcome, Owner, Refusal, Reply, StopReason, cluster::clip};

impl Cluster {
    pub(super) fn cordon_node(
        &mut self,
        id: NodeId,
        reason: &str,
        outcome: &mut Outcome,
    ) -> Answer {
        self.set_duty(id, Duty::Cordoned, reason)?;
        self.release_holds_on(id, "is cordoned", outcome);
        Ok(Reply::Done)
    }

    pub(super) fn drain_node(&mut self, id: NodeId, reason: &str, outcome: &mut Outcome) -> Answer {
        self.set_duty(id, Duty::Draining, reason)?;
        self.release_holds_on(id, "is drained", outcome);
        let node = self.nodes.get(id).expect("set_duty found it");
        let (name, owners) = (node.name.clone(), node.owners());
        for owner in owners {
            match self.allocations.get(owner).map(|allocation| allocation.owner) {
                Some(Owner::Gang { job, .. }) => {
                    let why = format!("{name} is drained");
                    self.stop_gang(job, StopReason::NodeDrained, &why, outcome);
                }
                Some(Owner::Instance { .. }) => self.stop(owner, StopReason::NodeDrained, outcome),
                None => {}
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn undrain_node(&mut self, id: NodeId) -> Answer {
        self.set_duty(id, Duty::InService, "")?;
        Ok(Reply::Done)
    }

    fn set_duty(&mut self, id: NodeId, duty: Duty, reason: &str) -> Result<(), Refusal> {
        let node = self.nodes.get_mut(id).ok_or_else(|| not_found("node", id))?;
        node.duty = duty;
        node.reason = clip(reason.to_owned());
        Ok(())
    }

    /// A node that can take nothing new cannot be held for a gang.
    pub(super) fn release_holds_on(&mut self, id: NodeId, why: &str, outcome: &mut Outcome) {
        let node = self.nodes.get(id).expect("the caller looked it up");
        let why = format!("{} {why}", node.name);
        for job in node.holders() {
            self.release_hold(job, &why, outcome);
        }
    }
}
