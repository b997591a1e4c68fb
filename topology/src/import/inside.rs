//! The inside of one machine: its GPUs and NICs, and how each reaches each.
//!
//! What NCCL's XML and `nvidia-smi topo -m` tell comes together here. The inventory holds of it
//! how many GPUs and which; the rest is shown, checked, and says which NIC each GPU is nearest to.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::{Hardware, ImportError, Imported, Options, Remark};
use crate::{FabricRecord, Inventory, hostlist};

/// GPUs, and NICs, of one machine.
const MAX_DEVICES: usize = 64;

/// One machine, seen from inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// In the machine's own order.
    pub gpus: Vec<Device>,
    /// In the machine's own order.
    pub nics: Vec<Device>,
    /// By GPU, then by GPU: how one reaches the other. On the diagonal `Path::Same`.
    pub gpu_paths: Vec<Vec<Path>>,
    /// By GPU, then by NIC.
    pub nic_paths: Vec<Vec<Path>>,
    /// Hardware threads, where the text tells.
    pub cpus: Option<u32>,
}

/// A GPU or a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `GPU0`, `mlx5_0`.
    pub name: String,
    /// For example `A100-SXM4-40GB`.
    pub model: Option<String>,
    /// Of a GPU.
    pub memory_mib: Option<u64>,
    /// The NUMA node it hangs on.
    pub numa: Option<u32>,
    /// Of a NIC, one direction.
    pub gbps: Option<u32>,
}

/// How two devices reach each other, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// A device and itself.
    Same,
    /// Over this many NVLinks, directly or through NVSwitches.
    NvLink(u32),
    /// Over one PCIe bridge.
    Pix,
    /// Over several PCIe bridges.
    Pxb,
    /// Over the host bridge of a CPU.
    Phb,
    /// Between host bridges of one NUMA node.
    Node,
    /// Between NUMA nodes.
    Sys,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Path::Same => "X",
            Path::NvLink(links) => return write!(f, "NV{links}"),
            Path::Pix => "PIX",
            Path::Pxb => "PXB",
            Path::Phb => "PHB",
            Path::Node => "NODE",
            Path::Sys => "SYS",
        };
        f.write_str(word)
    }
}

impl Path {
    /// As `nvidia-smi` writes it.
    pub(super) fn read(word: &str) -> Option<Path> {
        Some(match word {
            "X" => Path::Same,
            "PIX" => Path::Pix,
            "PXB" => Path::Pxb,
            "PHB" => Path::Phb,
            "NODE" => Path::Node,
            "SYS" | "SOC" => Path::Sys,
            _ => Path::NvLink(word.strip_prefix("NV")?.parse().ok()?),
        })
    }

    fn nvlinks(self) -> u32 {
        if let Path::NvLink(count) = self { count } else { 0 }
    }
}

impl Inside {
    /// What an inventory wants to know of the machine.
    pub fn hardware(&self) -> Hardware {
        let all = |of: fn(&Device) -> Option<String>, list: &[Device]| {
            let first = of(list.first()?)?;
            list.iter().all(|device| of(device).as_ref() == Some(&first)).then_some(first)
        };
        Hardware {
            gpu_model: all(|gpu| gpu.model.clone(), &self.gpus),
            gpu_count: u16::try_from(self.gpus.len()).ok(),
            gpu_memory_mib: self.gpus.iter().map(|gpu| gpu.memory_mib).min().flatten(),
            nic_model: all(|nic| nic.model.clone(), &self.nics),
            cpus: self.cpus,
            memory_mib: None,
        }
    }

    /// The NIC that each GPU is nearest to; of equally near ones those that serve fewest GPUs, so
    /// that each GPU of a rail-wired machine gets its own.
    pub fn nearest_nics(&self) -> Vec<Option<usize>> {
        let mut served = vec![0_usize; self.nics.len()];
        let nearest = |paths: &Vec<Path>| {
            let best = (0..paths.len()).min_by_key(|nic| (paths[*nic], served[*nic], *nic))?;
            served[best] += 1;
            Some(best)
        };
        self.nic_paths.iter().map(nearest).collect()
    }

    /// One line a NUMA node, devices behind the same PCIe bridges in brackets, then the NVLinks.
    pub fn drawing(&self) -> String {
        let mut out = String::new();
        let mut numas: BTreeMap<Option<u32>, Vec<String>> = BTreeMap::new();
        let mut placed = vec![false; self.nics.len()];
        let mut drawn = vec![false; self.gpus.len()];
        for gpu in 0..self.gpus.len() {
            if drawn[gpu] {
                continue;
            }
            let near = |path: Path| matches!(path, Path::Same | Path::Pix | Path::Pxb);
            // NVLink hides which bridges two GPUs share; the NICs beside them tell.
            let beside = |a: usize, b: usize| {
                near(self.gpu_paths[a][b])
                    || (0..self.nics.len())
                        .any(|nic| near(self.nic_paths[a][nic]) && near(self.nic_paths[b][nic]))
            };
            let mut group = Vec::new();
            for (other, drawn) in drawn.iter_mut().enumerate().skip(gpu) {
                if !*drawn && (other == gpu || beside(gpu, other)) {
                    *drawn = true;
                    group.push(self.gpus[other].name.clone());
                }
            }
            for (nic, placed) in placed.iter_mut().enumerate() {
                if !*placed && near(self.nic_paths[gpu][nic]) {
                    *placed = true;
                    group.push(self.nics[nic].name.clone());
                }
            }
            numas.entry(self.gpus[gpu].numa).or_default().push(format!("[{}]", group.join(" ")));
        }
        for (nic, _) in placed.iter().enumerate().filter(|(_, placed)| !**placed) {
            let device = &self.nics[nic];
            numas.entry(device.numa).or_default().push(format!("[{}]", device.name));
        }
        for (numa, groups) in numas {
            let numa = numa.map_or("numa ?".to_owned(), |numa| format!("numa {numa}"));
            let _ = writeln!(out, "{numa}: {}", groups.join(" "));
        }
        let _ = writeln!(out, "{}", self.nvlinks_in_words());
        out
    }

    fn nvlinks_in_words(&self) -> String {
        let pairs: Vec<u32> = self.pairs().map(|(_, _, path)| path.nvlinks()).collect();
        let joined = pairs.iter().filter(|count| **count > 0).count();
        match (joined, pairs.iter().min(), pairs.iter().max()) {
            (0, _, _) => "no NVLink between GPUs".to_owned(),
            (_, Some(least), Some(most)) if least == most => {
                format!("each GPU reaches each other over {least} NVLinks")
            }
            _ => format!("{joined} of {} pairs of GPUs are joined by NVLink", pairs.len()),
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize, Path)> {
        let of =
            move |a: usize| (a + 1..self.gpus.len()).map(move |b| (a, b, self.gpu_paths[a][b]));
        (0..self.gpus.len()).flat_map(of)
    }

    /// What differs inside the machine.
    pub(super) fn remarks(&self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let name = |gpu: usize| &self.gpus[gpu].name;
        for (a, b, path) in self.pairs() {
            let back = self.gpu_paths[b][a];
            if back != path {
                let text = format!("reaches {} by {path} and is reached by {back}", name(b));
                remarks.push(Remark::new(name(a), text));
            }
        }
        let links = |gpu: usize| -> u32 { self.gpu_paths[gpu].iter().map(|p| p.nvlinks()).sum() };
        let most = (0..self.gpus.len()).map(links).max().unwrap_or(0);
        for gpu in (0..self.gpus.len()).filter(|gpu| links(*gpu) < most) {
            let text = format!("has NVLinks for {} where others have {most}", links(gpu));
            remarks.push(Remark::new(name(gpu), text));
        }
        let nearest: Vec<Option<Path>> =
            self.nic_paths.iter().map(|paths| paths.iter().min().copied()).collect();
        let best = nearest.iter().flatten().min().copied();
        for (gpu, path) in nearest.iter().enumerate().filter(|(_, path)| **path != best) {
            if let (Some(path), Some(best)) = (path, best) {
                let text = format!("has its nearest NIC over {path}, others over {best}");
                remarks.push(Remark::new(name(gpu), text));
            }
        }
        remarks
    }

    /// The inventory of machines that are like this.
    pub(super) fn into_imported(
        self,
        options: &Options,
        mut remarks: Vec<Remark>,
    ) -> Result<Imported, ImportError> {
        for (what, list) in [("GPUs", &self.gpus), ("NICs", &self.nics)] {
            if list.len() > MAX_DEVICES {
                let problem = format!("{} {what} in one machine", list.len());
                return Err(ImportError::whole(
                    problem,
                    format!("at most {MAX_DEVICES} are possible"),
                ));
            }
        }
        let hardware = options.hardware.clone().or(self.hardware());
        let mut assumed = hardware.assumed();
        let names = super::wanted_nodes(options)?.unwrap_or_else(|| {
            assumed.push("a single machine called node1".to_owned());
            vec!["node1".to_owned()]
        });
        if names.len() > hostlist::MAX_NAMES {
            return Err(ImportError::whole("too many nodes", "name fewer"));
        }
        let node = |name| hardware.node(name, super::site_of(options));
        let nodes = names.into_iter().map(node).collect();
        let record = FabricRecord { nodes, ..FabricRecord::default() };
        remarks.extend(self.remarks());
        let inventory = Inventory::from_record(&record);
        Ok(Imported { inventory, remarks, assumed, inside: Some(self) })
    }
}
