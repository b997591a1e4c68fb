//! A machine with GPUs, and who has each of them.

use rowen_planted::{Bug, planted};
use rowen_topology::NodeRecord;
use serde::{Deserialize, Serialize};

use crate::{
    AllocationId, GpuMask, JobId, NodeId,
    ledger::{Class, Meter},
};

/// Whether the node's agent is heard. Transitions only: heartbeats stay in the
/// leader's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liveness {
    /// Its agent has not come yet.
    #[default]
    Unknown,
    /// Heard.
    Up,
    /// Not heard for a while: nothing new goes there, what it ran may still run.
    Silent,
    /// Silent past its margin: nothing of before can run there any more.
    Lost,
}

/// What the operator wants of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Duty {
    /// Place on it.
    #[default]
    InService,
    /// Nothing new; what runs goes on.
    Cordoned,
    /// Nothing new, and what runs is ended with its notice.
    Draining,
}

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSlot {
    /// Who has it.
    pub owner: Option<AllocationId>,
    /// For whom it is being cleared.
    pub held: Option<JobId>,
    /// As its agent last said.
    pub healthy: bool,
    /// Where its time went.
    pub meter: Meter,
}

/// A machine with GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id, never reused.
    pub id: NodeId,
    /// Its name in the fabric.
    pub name: String,
    /// GPU model.
    pub gpu_model: String,
    /// Cores; 0: not declared, so not counted.
    pub cpus: u32,
    /// Memory; 0: not declared, so not counted.
    pub memory_mib: u64,
    /// Whether its agent is heard.
    pub liveness: Liveness,
    /// What the operator wants of it.
    pub duty: Duty,
    /// Why, in the operator's words or ours.
    pub reason: String,
    /// Of the machine, from its agent. A new one means nothing of before runs.
    pub boot_id: String,
    /// Where other nodes reach its tasks.
    pub addr: String,
    /// Reserved by its agent, for rendezvous.
    pub ports: Vec<u16>,
    /// Its agent simulates its GPUs.
    pub simulated: bool,
    /// Its agent's version.
    pub version: String,
    /// Names the folder of the agent that came last.
    pub folder: String,
    /// When its agent said so, on the machine's boot clock.
    pub said_ms: u64,
    /// Log index at which its agent came last; 0: never.
    pub came: u64,
    /// Rises with every change of what should run there.
    pub generation: u64,
    /// By ordinal.
    pub gpus: Vec<GpuSlot>,
}

impl Node {
    pub(crate) fn new(id: NodeId, record: &NodeRecord, now_ms: u64) -> Self {
        let slot = GpuSlot {
            owner: None,
            held: None,
            healthy: true,
            meter: Meter::new(now_ms, Class::Down),
        };
        Node {
            id,
            name: record.name.clone(),
            gpu_model: record.gpu_model.clone(),
            cpus: record.cpus,
            memory_mib: record.memory_mib,
            liveness: Liveness::Unknown,
            duty: Duty::InService,
            reason: String::new(),
            boot_id: String::new(),
            addr: record.addr.clone().unwrap_or_default(),
            ports: Vec::new(),
            simulated: false,
            version: String::new(),
            folder: String::new(),
            said_ms: 0,
            came: 0,
            generation: 0,
            gpus: vec![slot; record.gpu_count.into()],
        }
    }

    /// Whether anything new may be placed here.
    pub fn schedulable(&self) -> bool {
        self.liveness == Liveness::Up && self.duty == Duty::InService
    }

    /// GPUs that can be given now: healthy, nobody's, held for nobody, on a schedulable node.
    pub fn free(&self) -> GpuMask {
        if !self.schedulable() {
            return GpuMask::NONE;
        }
        let held = |slot: &GpuSlot| slot.held.is_some() && !planted(Bug::HoldIgnored);
        self.mask(|slot| slot.healthy && slot.owner.is_none() && !held(slot))
    }

    /// GPUs of which `wanted` says yes.
    pub fn mask(&self, wanted: impl Fn(&GpuSlot) -> bool) -> GpuMask {
        (0u32..)
            .zip(&self.gpus)
            .filter(|(_, slot)| wanted(slot))
            .map(|(ordinal, _)| ordinal)
            .collect()
    }

    /// Distinct owners, rising.
    pub fn owners(&self) -> Vec<AllocationId> {
        let mut owners: Vec<_> = self.gpus.iter().filter_map(|slot| slot.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// Distinct jobs for which GPUs are held, rising.
    pub fn holders(&self) -> Vec<JobId> {
        let mut holders: Vec<_> = self.gpus.iter().filter_map(|slot| slot.held).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// Gives an unowned GPU's time to the class its node's liveness and its health say.
    pub(crate) fn meter_unowned(&mut self, now_ms: u64) {
        let up = self.liveness == Liveness::Up;
        for slot in self.gpus.iter_mut().filter(|slot| slot.owner.is_none()) {
            let class = if up && slot.healthy { Class::Idle } else { Class::Down };
            slot.meter.switch(now_ms, class);
        }
    }
}
