//! Nodes on the screen: the list, grouped as sinfo does, the page of one, and their JSON.

use rowen_api::v1::{Gpu, GpuSlot, Node};
use serde::Serialize;

use super::plan::OwnerView;
use super::table::{Tint, Value, columns, number, page, paragraphs, state, word};
use super::words::{self, count};

/// `node list -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct NodeListView {
    /// In the order of the hierarchy.
    pub(crate) nodes: Vec<NodeView>,
    /// Log index of the state that was read.
    pub(crate) index: u64,
}

/// `node show -o json`, and one of a list.
#[derive(Debug, Serialize)]
pub(crate) struct NodeView {
    pub(crate) name: String,
    rack: Option<String>,
    block: Option<String>,
    /// unknown, up, silent or down.
    state: String,
    /// in service, cordoned, draining or drained.
    duty: String,
    /// Why it is down, cordoned or drained.
    reason: Option<String>,
    gpu_model: String,
    cpus: u32,
    memory_mib: u64,
    /// Its agent simulates its GPUs.
    simulated: bool,
    boot_id: Option<String>,
    agent_version: Option<String>,
    gpus: Vec<GpuView>,
}

/// One GPU of a node.
#[derive(Debug, Serialize)]
pub(crate) struct GpuView {
    ordinal: u32,
    /// idle, allocated, draining, held or down.
    state: String,
    owner: Option<OwnerView>,
    /// The gang that gets it next.
    held_for: Option<OwnerView>,
    /// As its agent found it; only where one node is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    hardware: Option<HardwareView>,
    #[serde(skip)]
    label: String,
}

/// One GPU as the agent found it.
#[derive(Debug, Serialize)]
struct HardwareView {
    uuid: String,
    model: String,
    memory_mib: u64,
    pci_bus_id: Option<String>,
    nvlink_peers: Vec<u32>,
    healthy: bool,
    health: Option<String>,
}

impl NodeView {
    pub(crate) fn new(node: &Node) -> NodeView {
        let hardware =
            |slot: &GpuSlot| node.hardware.iter().find(|gpu| gpu.ordinal == slot.ordinal);
        NodeView {
            name: node.name.clone(),
            rack: words::some_text(&node.rack),
            block: words::some_text(&node.block),
            state: node.state.clone(),
            duty: node.duty.clone(),
            reason: words::some_text(&node.reason),
            gpu_model: node.gpu_model.clone(),
            cpus: node.cpus,
            memory_mib: node.memory_mib,
            simulated: node.simulated,
            boot_id: words::some_text(&node.boot_id),
            agent_version: words::some_text(&node.agent_version),
            gpus: node.gpus.iter().map(|slot| GpuView::new(slot, hardware(slot))).collect(),
        }
    }

    fn busy(&self) -> usize {
        let busy = |state: &str| matches!(state, "allocated" | "draining" | "held");
        self.gpus.iter().filter(|gpu| busy(&gpu.state)).count()
    }

    fn idle(&self) -> usize {
        self.gpus.iter().filter(|gpu| gpu.state == "idle").count()
    }

    /// One word, as sinfo has it: what keeps it from work, else how full it is.
    fn summary(&self) -> &str {
        match (self.state.as_str(), self.duty.as_str()) {
            ("up", "cordoned" | "draining" | "drained") => &self.duty,
            ("up", _) => match self.idle() {
                0 if !self.gpus.is_empty() => "allocated",
                idle if idle == self.gpus.len() => "idle",
                _ => "mixed",
            },
            (other, _) => other,
        }
    }
}

impl GpuView {
    fn new(slot: &GpuSlot, gpu: Option<&Gpu>) -> GpuView {
        let label = match (&slot.owner, &slot.held_for) {
            (Some(owner), Some(next)) => {
                format!("{}, then {}", words::owner(owner), words::owner(next))
            }
            (Some(owner), None) => words::owner(owner),
            (None, Some(next)) => format!("for {}", words::owner(next)),
            (None, None) => String::new(),
        };
        GpuView {
            ordinal: slot.ordinal,
            state: slot.state.clone(),
            owner: slot.owner.as_ref().map(OwnerView::new),
            held_for: slot.held_for.as_ref().map(OwnerView::new),
            hardware: gpu.map(HardwareView::new),
            label,
        }
    }
}

impl HardwareView {
    fn new(gpu: &Gpu) -> HardwareView {
        HardwareView {
            uuid: gpu.uuid.clone(),
            model: gpu.model.clone(),
            memory_mib: gpu.memory_mib,
            pci_bus_id: words::some_text(&gpu.pci_bus_id),
            nvlink_peers: gpu.nvlink_peers.clone(),
            healthy: gpu.healthy,
            health: words::some_text(&gpu.health),
        }
    }
}

/// `node list`: nodes that are alike on one line; wide: a line each.
pub(crate) fn list(view: &NodeListView, wide: bool, colour: bool) -> String {
    if view.nodes.is_empty() {
        return "No nodes: the cluster has no fabric yet; set one with `rowen fabric set FILE`."
            .to_owned();
    }
    if wide { each(&view.nodes, colour) } else { grouped(&view.nodes, colour) }
}

fn grouped(nodes: &[NodeView], colour: bool) -> String {
    let mut groups: Vec<(&NodeView, Vec<&NodeView>)> = Vec::new();
    for node in nodes {
        let alike = |(first, _): &&mut (&NodeView, _)| {
            first.summary() == node.summary()
                && first.gpu_model == node.gpu_model
                && first.gpus.len() == node.gpus.len()
        };
        match groups.iter_mut().find(alike) {
            Some((_, members)) => members.push(node),
            None => groups.push((node, vec![node])),
        }
    }
    let row = |(first, members): &(&NodeView, Vec<&NodeView>)| {
        let busy: usize = members.iter().map(|node| node.busy()).sum();
        let idle: usize = members.iter().map(|node| node.idle()).sum();
        vec![
            state(first.summary()),
            number(members.len()),
            number(format!("{}×{}", members.len(), first.gpus.len())),
            number(busy),
            number(idle),
            word(&first.gpu_model),
            word(words::host_list(members.iter().map(|node| node.name.as_str()))),
        ]
    };
    let header = ["STATE", "NODES", "GPUS", "BUSY", "IDLE", "MODEL", "NODELIST"];
    columns(&header, groups.iter().map(row).collect(), colour)
}

fn each(nodes: &[NodeView], colour: bool) -> String {
    let row = |node: &NodeView| {
        vec![
            word(&node.name),
            state(node.summary()),
            word(node.block.as_deref().unwrap_or("-")),
            word(node.rack.as_deref().unwrap_or("-")),
            number(node.gpus.len()),
            number(node.idle()),
            word(&node.gpu_model),
            number(node.cpus),
            number(words::memory(node.memory_mib)),
            word(node.reason.as_deref().unwrap_or("")),
        ]
    };
    let header =
        ["NODE", "STATE", "BLOCK", "RACK", "GPUS", "IDLE", "MODEL", "CPUS", "MEMORY", "REASON"];
    columns(&header, nodes.iter().map(row).collect(), colour)
}

/// `node show`.
pub(crate) fn show(node: &NodeView, colour: bool) -> String {
    let simulated = if node.simulated { ", simulated" } else { "" };
    let pairs = [
        ("State", Tint::of_state(&node.state).paint(&node.state, colour)),
        ("Duty", node.duty.clone()),
        ("Reason", node.reason.clone().unwrap_or_default()),
        (
            "Place",
            [&node.block, &node.rack].into_iter().flatten().cloned().collect::<Vec<_>>().join(", "),
        ),
        ("GPUs", format!("{} × {}{simulated}", node.gpus.len(), node.gpu_model)),
        ("CPUs", count(node.cpus.into(), "CPU")),
        ("Memory", words::memory(node.memory_mib)),
        ("Agent", node.agent_version.clone().unwrap_or_default()),
        ("Boot", node.boot_id.clone().unwrap_or_default()),
    ];
    let title = format!("Node {}", node.name);
    paragraphs([page(&title, &pairs, colour), gpus(&node.gpus, colour)])
}

fn gpus(gpus: &[GpuView], colour: bool) -> String {
    let known = gpus.iter().any(|gpu| gpu.hardware.is_some());
    let mut header = vec!["GPU", "STATE", "OWNER"];
    if known {
        header.extend(["MODEL", "MEMORY", "PCI", "NVLINK", "HEALTH", "UUID"]);
    }
    let row = |gpu: &GpuView| {
        let mut row = vec![number(gpu.ordinal), state(&gpu.state), word(&gpu.label)];
        if known {
            row.extend(hardware_cells(gpu.hardware.as_ref()));
        }
        row
    };
    columns(&header, gpus.iter().map(row).collect(), colour)
}

fn hardware_cells(gpu: Option<&HardwareView>) -> [Value; 6] {
    let Some(gpu) = gpu else { return [(); 6].map(|()| word("-")) };
    let health = match (gpu.healthy, &gpu.health) {
        (true, _) => "ok",
        (false, Some(why)) => why.as_str(),
        (false, None) => "failing",
    };
    let peers = words::ordinals(&gpu.nvlink_peers);
    [
        word(&gpu.model),
        number(words::memory(gpu.memory_mib)),
        word(gpu.pci_bus_id.as_deref().unwrap_or("-")),
        word(if peers.is_empty() { "-".to_owned() } else { peers }),
        word(health),
        word(&gpu.uuid),
    ]
}
