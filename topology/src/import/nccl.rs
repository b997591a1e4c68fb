//! NCCL's topology of one machine, as `NCCL_TOPO_DUMP_FILE` writes it and clouds ship it.
//!
//! CPUs hold PCIe bridges, GPUs and NICs; NVLinks name what they lead to. Reads no graph dumps:
//! those say which way NCCL goes, not what there is.

use std::collections::BTreeMap;

use roxmltree::{Document, Node, ParsingOptions};

use super::inside::{Device, Inside, Path};
use super::{ImportError, Imported, Options, Remark};

/// Elements of one file: a machine has some hundreds.
const MAX_ELEMENTS: u32 = 100_000;
/// Bridges behind bridges.
const MAX_DEPTH: usize = 32;
const MAX_BYTES: usize = 4 << 20;
const FIX: &str = "give what NCCL_TOPO_DUMP_FILE writes";

pub(super) fn import(text: &str, options: &Options) -> Result<Imported, ImportError> {
    if text.len() > MAX_BYTES {
        let problem = format!("larger than {} MiB, for one machine", MAX_BYTES >> 20);
        return Err(ImportError::whole(problem, FIX));
    }
    let parsing = ParsingOptions { nodes_limit: MAX_ELEMENTS, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, parsing).map_err(|error| {
        ImportError::at(error.pos().row.into(), "", format!("not XML: {error}"), FIX)
    })?;
    let root = document.root_element();
    if root.tag_name().name() == "graphs" {
        let problem = "this is a graph dump: it says which way NCCL goes, not what there is";
        return Err(ImportError::at(line_of(root), "graphs", problem, FIX));
    }
    if root.tag_name().name() != "system" {
        let problem = "the outermost element is not system";
        return Err(ImportError::at(line_of(root), root.tag_name().name(), problem, FIX));
    }
    let mut machine = Machine::default();
    for cpu in elements(root) {
        match cpu.tag_name().name() {
            "cpu" => machine.cpu(cpu)?,
            _ => return Err(unknown(cpu, "cpu")),
        }
    }
    if machine.gpus.is_empty() {
        let problem = match machine.classless {
            0 => "no GPU: no pci element of class 0x0302".to_owned(),
            n => format!("{n} pci elements without class: nothing tells which are GPUs"),
        };
        return Err(ImportError::at(line_of(root), "pci", problem, FIX));
    }
    let mut remarks = Vec::new();
    machine.inside(&mut remarks).into_imported(options, remarks)
}

/// What was found so far.
#[derive(Default)]
struct Machine {
    gpus: Vec<Found>,
    nics: Vec<Found>,
    threads: u32,
    classless: usize,
}

/// A device and the way to it.
struct Found {
    device: Device,
    bus: String,
    /// CPU, then bridge by bridge.
    way: Vec<String>,
    /// What its NVLinks lead to, how many, and whether that is a GPU.
    nvlinks: Vec<(String, u32, bool)>,
}

impl Machine {
    fn cpu(&mut self, cpu: Node<'_, '_>) -> Result<(), ImportError> {
        let numa = number(cpu, "numaid")?.unwrap_or(self.gpus.len() as u32);
        if let Some(mask) = cpu.attribute("affinity") {
            let mut threads = 0;
            for digit in mask.chars().filter(|c| *c != ',') {
                let bits = digit.to_digit(16).ok_or_else(|| {
                    let problem = format!("{mask:?} is not a mask");
                    ImportError::at(line_of(cpu), "affinity", problem, FIX)
                })?;
                threads += bits.count_ones();
            }
            self.threads += threads;
        }
        self.children(cpu, numa, &mut vec![format!("numa {numa}")])
    }

    fn children(
        &mut self,
        parent: Node<'_, '_>,
        numa: u32,
        way: &mut Vec<String>,
    ) -> Result<(), ImportError> {
        if way.len() > MAX_DEPTH {
            let problem = format!("more than {MAX_DEPTH} bridges behind each other");
            return Err(ImportError::at(line_of(parent), "pci", problem, FIX));
        }
        for child in elements(parent) {
            match child.tag_name().name() {
                "pci" => self.pci(child, numa, way)?,
                // NICs without a PCIe address of their own.
                "nic" => self.nic(child, numa, way)?,
                // What is in a cpu beside it: AMD's and Intel's own links, and what comes later.
                _ => {}
            }
        }
        Ok(())
    }

    fn pci(
        &mut self,
        pci: Node<'_, '_>,
        numa: u32,
        way: &mut Vec<String>,
    ) -> Result<(), ImportError> {
        let bus = pci.attribute("busid").ok_or_else(|| {
            ImportError::at(line_of(pci), "busid", "missing", "write the PCI address")
        })?;
        let class = pci.attribute("class").unwrap_or_default();
        let gpu = elements(pci).find(|child| child.tag_name().name() == "gpu");
        if gpu.is_some() || class.starts_with("0x0302") || class.starts_with("0x0300") {
            let device = gpu_device(pci, gpu, numa, self.gpus.len())?;
            let nvlinks = gpu.map(nvlinks).transpose()?.unwrap_or_default();
            self.gpus.push(Found { device, bus: bus.to_owned(), way: way.clone(), nvlinks });
        } else if class.starts_with("0x02") {
            let nic = elements(pci).find(|child| child.tag_name().name() == "nic");
            match nic {
                Some(nic) => self.nic(nic, numa, way)?,
                None => self.add_nic(bus, None, numa, way),
            }
        } else {
            self.classless += usize::from(class.is_empty());
            way.push(bus.to_owned());
            self.children(pci, numa, way)?;
            way.pop();
        }
        Ok(())
    }

    fn nic(&mut self, nic: Node<'_, '_>, numa: u32, way: &[String]) -> Result<(), ImportError> {
        let mut nets = elements(nic).filter(|child| child.tag_name().name() == "net").peekable();
        if nets.peek().is_none() {
            self.add_nic("nic", None, numa, way);
        }
        for net in nets {
            // In Mb/s.
            let gbps = number(net, "speed")?.map(|speed| speed / 1000);
            self.add_nic(net.attribute("name").unwrap_or("nic"), gbps, numa, way);
        }
        Ok(())
    }

    fn add_nic(&mut self, name: &str, gbps: Option<u32>, numa: u32, way: &[String]) {
        let name = name.to_owned();
        let device = Device { name, gbps, numa: Some(numa), ..Device::default() };
        let (bus, nvlinks) = (String::new(), Vec::new());
        self.nics.push(Found { device, bus, way: way.to_vec(), nvlinks });
    }

    fn inside(self, remarks: &mut Vec<Remark>) -> Inside {
        let at_of: BTreeMap<&str, usize> =
            self.gpus.iter().enumerate().map(|(at, gpu)| (gpu.bus.as_str(), at)).collect();
        let count = self.gpus.len();
        let mut links = vec![BTreeMap::<usize, u32>::new(); count];
        let mut switched = vec![0_u32; count];
        for (at, gpu) in self.gpus.iter().enumerate() {
            for (target, links_there, is_gpu) in &gpu.nvlinks {
                match at_of.get(target.as_str()) {
                    Some(&other) if other == at => {
                        let text = format!("names itself as the end of {links_there} NVLinks");
                        remarks.push(Remark::new(&gpu.device.name, text));
                    }
                    Some(&other) => *links[at].entry(other).or_default() += links_there,
                    None if *is_gpu => {
                        let text = format!("has NVLinks to {target}, which is not in the file");
                        remarks.push(Remark::new(&gpu.device.name, text));
                    }
                    None => switched[at] += links_there,
                }
            }
        }
        if links.iter().all(BTreeMap::is_empty) && switched.iter().all(|count| *count == 0) {
            let text = "tells of no NVLink between GPUs: NCCL asks the driver for it";
            remarks.push(Remark::new("the file", text));
        }
        let between = |a: usize, b: usize| {
            let direct = links[a].get(&b).copied().unwrap_or(0) + switched[a].min(switched[b]);
            match (a == b, direct) {
                (true, _) => Path::Same,
                (_, 0) => over_pci(&self.gpus[a].way, &self.gpus[b].way),
                (_, links) => Path::NvLink(links),
            }
        };
        let nic_path = |a: usize| self.nics.iter().map(move |nic| (a, nic));
        Inside {
            gpu_paths: (0..count).map(|a| (0..count).map(|b| between(a, b)).collect()).collect(),
            nic_paths: (0..count)
                .map(|a| {
                    nic_path(a).map(|(a, nic)| over_pci(&self.gpus[a].way, &nic.way)).collect()
                })
                .collect(),
            cpus: Some(self.threads).filter(|threads| *threads > 0),
            gpus: self.gpus.iter().map(|gpu| gpu.device.clone()).collect(),
            nics: self.nics.iter().map(|nic| nic.device.clone()).collect(),
        }
    }
}

/// By the bridges that two ways share.
fn over_pci(a: &[String], b: &[String]) -> Path {
    let shared = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    match shared {
        0 => Path::Sys,
        1 => Path::Phb,
        _ if shared == a.len() && shared == b.len() => Path::Pix,
        _ => Path::Pxb,
    }
}

fn gpu_device(
    pci: Node<'_, '_>,
    gpu: Option<Node<'_, '_>>,
    numa: u32,
    place: usize,
) -> Result<Device, ImportError> {
    let number = gpu.map(|gpu| number(gpu, "dev")).transpose()?.flatten();
    let name = format!("GPU{}", number.unwrap_or(place as u32));
    let (model, memory_mib) = match pci.attribute("device").and_then(model) {
        Some((model, memory_mib)) => (Some(model.to_owned()), Some(memory_mib)),
        None => (None, None),
    };
    Ok(Device { name, model, memory_mib, numa: Some(numa), gbps: None })
}

fn nvlinks(gpu: Node<'_, '_>) -> Result<Vec<(String, u32, bool)>, ImportError> {
    let mut links = Vec::new();
    for link in elements(gpu).filter(|child| child.tag_name().name() == "nvlink") {
        let target = link.attribute("target").unwrap_or_default().to_owned();
        let is_gpu = link.attribute("tclass").is_some_and(|class| class.starts_with("0x03"));
        let count = number(link, "count")?.unwrap_or(1).min(1_000);
        links.push((target, count, is_gpu));
    }
    Ok(links)
}

/// Model and memory by PCI device number, as in the public PCI id list.
fn model(device: &str) -> Option<(&'static str, u64)> {
    Some(match device {
        "0x1db1" => ("V100-SXM2-16GB", 16_384),
        "0x1db5" => ("V100-SXM2-32GB", 32_768),
        "0x20b0" => ("A100-SXM4-40GB", 40_960),
        "0x20b2" => ("A100-SXM4-80GB", 81_920),
        "0x20b5" => ("A100-PCIE-80GB", 81_920),
        "0x20f1" => ("A100-PCIE-40GB", 40_960),
        "0x2237" => ("A10G", 24_576),
        "0x2330" => ("H100-SXM5-80GB", 81_559),
        "0x2331" => ("H100-PCIE-80GB", 81_559),
        "0x2335" => ("H200-SXM5-141GB", 143_771),
        "0x2342" => ("GH200-480GB", 97_871),
        "0x2901" => ("B200", 183_359),
        "0x2941" => ("GB200", 189_471),
        _ => return None,
    })
}

fn elements<'a, 'input>(node: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(Node::is_element)
}

fn number(node: Node<'_, '_>, name: &str) -> Result<Option<u32>, ImportError> {
    let Some(text) = node.attribute(name) else { return Ok(None) };
    // NCCL writes -1 where it does not know.
    if text.starts_with('-') {
        return Ok(None);
    }
    let bad = |_| {
        let problem = format!("{text:?} is not a whole number");
        ImportError::at(line_of(node), name, problem, "write a number")
    };
    text.parse().map(Some).map_err(bad)
}

fn unknown(node: Node<'_, '_>, expected: &str) -> ImportError {
    let problem = format!("not {expected}");
    ImportError::at(line_of(node), node.tag_name().name(), problem, FIX)
}

fn line_of(node: Node<'_, '_>) -> u64 {
    node.document().text_pos_at(node.range().start).row.into()
}
