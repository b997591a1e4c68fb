//! Small fabrics drawn as text, so that a test's topology can be read in the test.
//!
//! ```text
//! site lab                            # optional; what follows stands there (else: "lab")
//! pod p0                              # optional; the blocks that follow share spine p0-spine
//! block b0: node[1-4] x8              # 4 nodes of 8 GPUs on leaf b0-leaf
//! block b1: n[5-6] x8 H200 + n7 x4    # another model; two kinds of nodes on one leaf
//! loose: cloud[1-2] x1                # nodes without leafs
//! nvlink nvl0: node[1-2]              # these share an NVLink domain (else: each its own)
//! rack r1: node[1-4],n5               # these stand in this rack (else: in none)
//! label tier=gold: node[1-2]          # these have this label
//! power feed-a: node[1-2]             # any other word is a kind of failure domain
//! ```
//!
//! GPUs are H100 unless said; each comes with 80 GiB of its own, 16 CPUs and 128 GiB of main memory.

use std::collections::BTreeMap;

use crate::{FabricRecord, InventoryError, LeafRecord, NodeRecord, hostlist};

const CPUS_PER_GPU: u32 = 16;
const MEMORY_PER_GPU_MIB: u64 = 128 << 10;
const GPU_MEMORY_MIB: u64 = 80 << 10;

/// The record of a drawing; errors name the line.
pub fn parse(text: &str) -> Result<FabricRecord, InventoryError> {
    let mut page = Page { site: "lab".to_owned(), pod: "pod".to_owned(), ..Page::default() };
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            page.read(line).map_err(|(problem, fix)| InventoryError {
                field: format!("line {}", at + 1),
                problem,
                fix: fix.to_owned(),
            })?;
        }
    }
    page.record.check_limits()?;
    Ok(page.record)
}

/// What is wrong with a line, and what to write.
type LineError = (String, &'static str);

#[derive(Default)]
struct Page {
    site: String,
    pod: String,
    record: FabricRecord,
    node_at: BTreeMap<String, usize>,
}

impl Page {
    fn read(&mut self, line: &str) -> Result<(), LineError> {
        let (head, body) = line.split_once(':').map_or((line, None), |(h, b)| (h, Some(b.trim())));
        let words: Vec<&str> = head.split_whitespace().collect();
        match (words.as_slice(), body) {
            (["site", name], None) => self.site = (*name).to_owned(),
            (["pod", name], None) => self.pod = (*name).to_owned(),
            (["block", name], Some(body)) => self.block(name, body)?,
            (["loose"], Some(body)) => self.nodes(body, &[])?,
            (["nvlink", name], Some(body)) => {
                self.each(body, |node| node.nvlink_domain = Some((*name).to_owned()))?;
            }
            (["rack", name], Some(body)) => {
                self.each(body, |node| node.rack = (*name).to_owned())?;
            }
            (["label", pair], Some(body)) if pair.contains('=') => {
                let (key, value) = pair.split_once('=').expect("it was just found there");
                self.each(body, |node| {
                    node.labels.insert(key.to_owned(), value.to_owned());
                })?;
            }
            ([kind, name], Some(body)) => self.each(body, |node| {
                node.failure_domains.insert((*kind).to_owned(), (*name).to_owned());
            })?,
            _ => return Err((format!("cannot read {line:?}"), "write block NAME: node[1-8] x8")),
        }
        Ok(())
    }

    fn block(&mut self, name: &str, body: &str) -> Result<(), LineError> {
        let spine = format!("{}-spine", self.pod);
        if !self.record.spines.contains(&spine) {
            self.record.spines.push(spine.clone());
        }
        let leaf = format!("{name}-leaf");
        let spines = vec![spine];
        self.record.leafs.push(LeafRecord { name: leaf.clone(), rail: None, spines });
        self.nodes(body, &[leaf])
    }

    /// `node[1-4] x8 H200 + node5 x4`.
    fn nodes(&mut self, body: &str, leafs: &[String]) -> Result<(), LineError> {
        for kind in body.split(" + ") {
            let words: Vec<&str> = kind.split_whitespace().collect();
            let fix = "write nodes, GPUs and perhaps a model: node[1-8] x8 H100";
            let [names, gpus, model @ ..] = words.as_slice() else {
                return Err((format!("cannot read {kind:?}"), fix));
            };
            let gpus = gpus.strip_prefix('x').and_then(|n| n.parse().ok());
            let (Some(gpus), [] | [_]) = (gpus, model) else {
                return Err((format!("cannot read {kind:?}"), fix));
            };
            let model = model.first().unwrap_or(&"H100");
            for name in expand(names)? {
                self.node_at.insert(name.clone(), self.record.nodes.len());
                self.record.nodes.push(node(name, &self.site, leafs, gpus, model));
            }
        }
        Ok(())
    }

    fn each(&mut self, body: &str, set: impl Fn(&mut NodeRecord)) -> Result<(), LineError> {
        for name in expand(body)? {
            let Some(&at) = self.node_at.get(&name) else {
                return Err((format!("unknown node {name:?}"), "draw its block first"));
            };
            set(&mut self.record.nodes[at]);
        }
        Ok(())
    }
}

fn expand(list: &str) -> Result<Vec<String>, LineError> {
    hostlist::expand(list).map_err(|error| (error.to_string(), "write names like node[1-8,12]"))
}

fn node(name: String, site: &str, leafs: &[String], gpus: u16, model: &str) -> NodeRecord {
    NodeRecord {
        name,
        site: site.to_owned(),
        rack: String::new(),
        nvlink_domain: None,
        leafs: leafs.to_vec(),
        gpu_model: model.to_owned(),
        gpu_count: gpus,
        gpu_memory_mib: GPU_MEMORY_MIB,
        nic_model: String::new(),
        cpus: CPUS_PER_GPU * u32::from(gpus),
        memory_mib: MEMORY_PER_GPU_MIB * u64::from(gpus),
        addr: None,
        failure_domains: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}
