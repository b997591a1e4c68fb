//! Fabrics made to measure, and writers of other systems' formats, for the tests of importers.
#![expect(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rowen_topology::import::{Hardware, Options};
use rowen_topology::*;

/// What a generated fabric looks like.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) racks: usize,
    pub(crate) nodes: usize,
    pub(crate) rails: usize,
    pub(crate) spines: usize,
    /// By leaf, then by spine, both in order: whether there is a cable. The first always is.
    pub(crate) uplinks: Vec<Vec<bool>>,
    /// The first node of the first rack lacks its last rail (of at least three).
    pub(crate) lacking: bool,
}

pub(crate) const HARDWARE: (&str, u16, u64, &str, u32, u64) =
    ("H100", 8, 81_559, "ConnectX-7", 192, 2 << 20);

pub(crate) fn options() -> Options {
    let (model, gpus, gpu_memory_mib, nic, cpus, memory_mib) = HARDWARE;
    Options {
        site: Some("lab".to_owned()),
        hardware: Hardware {
            gpu_model: Some(model.to_owned()),
            gpu_count: Some(gpus),
            gpu_memory_mib: Some(gpu_memory_mib),
            nic_model: Some(nic.to_owned()),
            cpus: Some(cpus),
            memory_mib: Some(memory_mib),
        },
        nodes: None,
    }
}

impl Plan {
    /// As an importer gives it back: racks and nodes in order, spines that any leaf reaches.
    pub(crate) fn record(&self) -> FabricRecord {
        let (model, gpus, gpu_memory_mib, nic, cpus, memory_mib) = HARDWARE;
        let mut record = FabricRecord::default();
        for rack in 0..self.racks {
            for rail in 0..self.rails {
                let cables = &self.uplinks[(rack * self.rails + rail) % self.uplinks.len()];
                let reached = |spine: &usize| *spine == 0 || cables[*spine % cables.len()];
                let spines: Vec<String> =
                    (0..self.spines).filter(reached).map(|s| format!("spine{s:02}")).collect();
                let rail_number = (self.rails > 1).then_some(rail as u8);
                let name = format!("r{rack:03}-leaf{rail}");
                record.leafs.push(LeafRecord { name, rail: rail_number, spines });
            }
            for node in 0..self.nodes {
                let lacks = self.lacking && self.rails > 2 && self.nodes > 1;
                let rails = self.rails - usize::from(lacks && rack == 0 && node == 0);
                record.nodes.push(NodeRecord {
                    name: format!("r{rack:03}-n{node:02}"),
                    site: "lab".to_owned(),
                    rack: format!("r{rack:03}"),
                    nvlink_domain: None,
                    leafs: (0..rails).map(|rail| format!("r{rack:03}-leaf{rail}")).collect(),
                    gpu_model: model.to_owned(),
                    gpu_count: gpus,
                    gpu_memory_mib,
                    nic_model: nic.to_owned(),
                    cpus,
                    memory_mib,
                    addr: None,
                    failure_domains: BTreeMap::new(),
                    labels: BTreeMap::new(),
                });
            }
        }
        let mut spines: Vec<String> =
            record.leafs.iter().flat_map(|leaf| leaf.spines.clone()).collect();
        spines.sort();
        spines.dedup();
        record.spines = spines;
        record
    }
}

/// Slurm's tree: leafs below each of their spines.
pub(crate) fn topology_conf(record: &FabricRecord) -> String {
    let mut out = String::from("# written by a test\n");
    for spine in &record.spines {
        let below = record.leafs.iter().filter(|leaf| leaf.spines.contains(spine));
        let below: Vec<String> = below.map(|leaf| leaf.name.clone()).collect();
        let _ = writeln!(out, "SwitchName={spine} Switches={}", hostlist::compress(&below));
    }
    for leaf in &record.leafs {
        let nodes = record.nodes.iter().filter(|node| node.leafs.contains(&leaf.name));
        let nodes: Vec<String> = nodes.map(|node| node.name.clone()).collect();
        let _ =
            writeln!(out, "SwitchName={} \\\n  Nodes={}", leaf.name, hostlist::compress(&nodes));
    }
    out
}

/// A model of topograph; each node hangs on its first leaf.
pub(crate) fn topograph(record: &FabricRecord) -> String {
    let mut out = String::from("switches:\n");
    for spine in &record.spines {
        let _ = writeln!(out, "  {spine}:\n    switches:");
        for leaf in record.leafs.iter().filter(|leaf| leaf.spines.contains(spine)) {
            let _ = writeln!(out, "    - {}", leaf.name);
        }
    }
    out.push_str("blocks:\n");
    for leaf in &record.leafs {
        let _ = writeln!(out, "- switch: {}\n  nodes:", leaf.name);
        for node in record.nodes.iter().filter(|node| node.leafs[0] == leaf.name) {
            let _ = writeln!(out, "  - {}", node.name);
        }
        let _ = writeln!(
            out,
            "  annotations:\n    accelerator.topology.test/domain: nvl-{}",
            leaf.name
        );
    }
    out
}

/// Every cable: HCA to leaf, leaf to spine. Devices by name, ports from 1.
pub(crate) struct Cables {
    /// Device, port, device, port.
    pub(crate) list: Vec<(String, usize, String, usize)>,
}

impl Cables {
    pub(crate) fn of(record: &FabricRecord) -> Cables {
        let mut used: BTreeMap<String, usize> = BTreeMap::new();
        let mut list = Vec::new();
        let mut rack_port: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &record.nodes {
            // The same port on each leaf, as a rack is wired.
            let port = rack_port.entry(&node.rack).or_default();
            *port += 1;
            for leaf in &node.leafs {
                let rail = leaf.rsplit("leaf").next().unwrap_or_default();
                let hca = format!("{} mlx5_{rail}", node.name);
                list.push((hca, 1, leaf.clone(), *port));
                let top = used.entry(leaf.clone()).or_default();
                *top = (*top).max(*port);
            }
        }
        for leaf in &record.leafs {
            for spine in &leaf.spines {
                // Two cables to each spine.
                for _ in 0..2 {
                    let mut next = |name: &String| {
                        let port = used.entry(name.clone()).or_default();
                        *port += 1;
                        *port
                    };
                    let (a, b) = (next(&leaf.name), next(spine));
                    list.push((leaf.name.clone(), a, spine.clone(), b));
                }
            }
        }
        Cables { list }
    }

    /// By device: its ports.
    fn ports(&self) -> BTreeMap<&str, Vec<(usize, &str, usize)>> {
        let mut ports: BTreeMap<&str, Vec<(usize, &str, usize)>> = BTreeMap::new();
        for (a, a_port, b, b_port) in &self.list {
            ports.entry(a).or_default().push((*a_port, b, *b_port));
            ports.entry(b).or_default().push((*b_port, a, *a_port));
        }
        ports
    }

    /// As `ibnetdiscover` prints it.
    pub(crate) fn ibnetdiscover(&self) -> String {
        let ports = self.ports();
        let guid: BTreeMap<&str, usize> =
            ports.keys().enumerate().map(|(at, name)| (*name, at + 0x1000)).collect();
        let id = |name: &str| {
            let letter = if name.contains(' ') { 'H' } else { 'S' };
            format!("{letter}-{:016x}", guid[name])
        };
        let said = |name: &str| match name.contains(' ') {
            true => name.to_owned(),
            false => format!("MF0;{name}:MQM9700/U1"),
        };
        let mut out = String::from("#\n# Topology file: generated by a test\n#\n");
        for (name, list) in &ports {
            let hca = name.contains(' ');
            let devid = if hca { "0x1021" } else { "0xd2f2" };
            let _ = writeln!(out, "\nvendid=0x2c9\ndevid={devid}\nsysimgguid=0x{:x}", guid[name]);
            let (key, word) = if hca { ("caguid", "Ca") } else { ("switchguid", "Switch") };
            let _ = writeln!(out, "{key}=0x{:x}", guid[name]);
            let _ = writeln!(out, "{word}\t65 \"{}\"\t\t# \"{}\"", id(name), said(name));
            for (port, far, far_port) in list {
                let _ = match hca {
                    true => writeln!(
                        out,
                        "[{port}]({:x}) \t\"{}\"[{far_port}]\t\t# lid 1 lmc 0 \"{}\" lid 2 4xNDR",
                        guid[name],
                        id(far),
                        said(far)
                    ),
                    false => writeln!(
                        out,
                        "[{port}]\t\"{}\"[{far_port}] \t\t# \"{}\" lid 2 4xNDR",
                        id(far),
                        said(far)
                    ),
                };
            }
        }
        out
    }

    /// A net file of `ibsim`.
    pub(crate) fn ibsim(&self) -> String {
        let mut out = String::new();
        for (name, list) in &self.ports() {
            let word = if name.contains(' ') { "Hca" } else { "Switch" };
            let most = list.iter().map(|(port, _, _)| *port).max().unwrap_or(1);
            let _ = writeln!(out, "{word} {most} \"{name}\"");
            for (port, far, far_port) in list {
                let _ = writeln!(out, "[{port}] \"{far}\"[{far_port}]");
            }
            out.push('\n');
        }
        out
    }
}
