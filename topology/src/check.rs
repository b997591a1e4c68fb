//! Every limit and every reference of a fabric, checked in one place.
//!
//! A record that came over the wire and one expanded from a file pass the same checks; only the
//! spelling of the faulty field differs. Never repairs anything.

use std::collections::{BTreeMap, BTreeSet};

use crate::hostlist::MAX_NAMES;
use crate::{FabricRecord, LeafRecord, NodeRecord};

/// Leafs, and spines, in one cluster.
pub(crate) const MAX_SWITCHES: usize = 16_384;
/// Leafs that one node hangs on: one a rail.
pub(crate) const MAX_LEAFS_A_NODE: usize = 64;
/// Spines that one leaf reaches.
pub(crate) const MAX_SPINES_A_LEAF: usize = 256;
/// Labels, and failure domains, of one node.
pub(crate) const MAX_PAIRS: usize = 64;
/// Bytes in a name.
pub(crate) const MAX_NAME: usize = 128;
/// Bytes in a label's key or value (Kubernetes keys reach 253 + 1 + 63).
pub(crate) const MAX_LABEL: usize = 317;
/// A node's GPUs are a u64 mask.
pub(crate) const MAX_GPUS: u16 = 64;
/// Different GPU models in one cluster.
pub(crate) const MAX_MODELS: usize = 256;
/// Hardware threads of one node.
pub(crate) const MAX_CPUS: u32 = 65_536;
/// Memory of one node or GPU, one pebibyte: sums over a cluster stay far below a u64.
pub(crate) const MAX_MEMORY_MIB: u64 = 1 << 30;

/// What is wrong with an inventory or a record, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {fix}")]
pub struct InventoryError {
    /// The path of the field, for example `nodes[2].gpu.count`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub fix: String,
}

/// A fault before its field is spelled: which member of which list.
pub(crate) struct Fault {
    pub(crate) list: &'static str,
    pub(crate) index: usize,
    /// Field of the member; empty: the member itself.
    pub(crate) field: String,
    pub(crate) problem: String,
    pub(crate) fix: String,
}

impl Fault {
    fn new(field: &str, problem: String, fix: impl Into<String>) -> Fault {
        Fault { list: "", index: 0, field: field.to_owned(), problem, fix: fix.into() }
    }

    pub(crate) fn at(self, list: &'static str, index: usize) -> Fault {
        Fault { list, index, ..self }
    }

    /// The fault of a field that stands in no list.
    pub(crate) fn alone(self) -> InventoryError {
        InventoryError { field: self.field, problem: self.problem, fix: self.fix }
    }

    /// Spells the field as `list[index].field`.
    pub(crate) fn spelled(self, index: usize, field: &str) -> InventoryError {
        let dot = if field.is_empty() { "" } else { "." };
        InventoryError {
            field: format!("{}[{index}]{dot}{field}", self.list),
            problem: self.problem,
            fix: self.fix,
        }
    }
}

impl FabricRecord {
    /// Checks every limit and every reference; for a record that came over the wire.
    pub fn check_limits(&self) -> Result<(), InventoryError> {
        self.first_fault().map_err(|fault| {
            let (index, field) = (fault.index, fault.field.clone());
            fault.spelled(index, &field)
        })
    }

    pub(crate) fn first_fault(&self) -> Result<(), Fault> {
        for (list, len, most) in [
            ("nodes", self.nodes.len(), MAX_NAMES),
            ("leafs", self.leafs.len(), MAX_SWITCHES),
            ("spines", self.spines.len(), MAX_SWITCHES),
        ] {
            if len > most {
                let fix = format!("at most {most} are possible");
                return Err(Fault::new("", format!("{len} of them"), fix).at(list, most));
            }
        }
        if self.nodes.is_empty() {
            let fix = "name at least one node";
            return Err(Fault::new("", "the fabric has no nodes".to_owned(), fix).at("nodes", 0));
        }
        let spines = check_spines(&self.spines)?;
        let leafs = check_leafs(&self.leafs, &spines)?;
        check_nodes(&self.nodes, &leafs)
    }
}

fn check_spines(spines: &[String]) -> Result<BTreeSet<&str>, Fault> {
    let mut known = BTreeSet::new();
    for (index, spine) in spines.iter().enumerate() {
        check_name("", spine).map_err(|fault| fault.at("spines", index))?;
        if !known.insert(spine.as_str()) {
            return Err(twice("", "spine", spine).at("spines", index));
        }
    }
    Ok(known)
}

fn check_leafs<'a>(
    leafs: &'a [LeafRecord],
    spines: &BTreeSet<&str>,
) -> Result<BTreeSet<&'a str>, Fault> {
    let mut known = BTreeSet::new();
    for (index, leaf) in leafs.iter().enumerate() {
        let here = |fault: Fault| fault.at("leafs", index);
        check_name("name", &leaf.name).map_err(here)?;
        if !known.insert(leaf.name.as_str()) {
            return Err(here(twice("name", "leaf", &leaf.name)));
        }
        if let Some(rail @ 64..) = leaf.rail {
            let problem = format!("rail {rail} is out of range");
            return Err(here(Fault::new("rail", problem, "write 0 to 63")));
        }
        check_links("spines", "spine", &leaf.spines, MAX_SPINES_A_LEAF, spines).map_err(here)?;
    }
    Ok(known)
}

fn check_nodes(nodes: &[NodeRecord], leafs: &BTreeSet<&str>) -> Result<(), Fault> {
    let mut names = BTreeSet::new();
    let mut models = BTreeSet::new();
    // Neighbours mostly share their leafs: comparing is cheaper than looking each one up.
    let mut checked: &[String] = &[];
    for (index, node) in nodes.iter().enumerate() {
        let here = |fault: Fault| fault.at("nodes", index);
        check_name("name", &node.name).map_err(here)?;
        if !names.insert(node.name.as_str()) {
            return Err(here(twice("name", "node", &node.name)));
        }
        if node.leafs != checked {
            check_links("leafs", "leaf", &node.leafs, MAX_LEAFS_A_NODE, leafs).map_err(here)?;
            checked = &node.leafs;
        }
        check_place(node).map_err(here)?;
        check_hardware(node).map_err(here)?;
        check_pairs(node).map_err(here)?;
        models.insert(node.gpu_model.as_str());
        if models.len() > MAX_MODELS {
            let problem = format!("more than {MAX_MODELS} GPU models");
            return Err(here(Fault::new("gpu_model", problem, "spell equal models alike")));
        }
    }
    Ok(())
}

fn check_place(node: &NodeRecord) -> Result<(), Fault> {
    check_name("site", &node.site)?;
    if !node.rack.is_empty() {
        check_name("rack", &node.rack)?;
    }
    if let Some(domain) = &node.nvlink_domain {
        check_name("nvlink_domain", domain)?;
    }
    if let Some(addr) = &node.addr {
        check_name("addr", addr)?;
    }
    Ok(())
}

fn check_hardware(node: &NodeRecord) -> Result<(), Fault> {
    check_text("gpu_model", &node.gpu_model, MAX_NAME)?;
    if node.gpu_model.is_empty() {
        let fix = "name the GPU model, for example H100";
        return Err(Fault::new("gpu_model", "no GPU model".to_owned(), fix));
    }
    if !(1..=MAX_GPUS).contains(&node.gpu_count) {
        let problem = format!("{} GPUs in a node", node.gpu_count);
        return Err(Fault::new("gpu_count", problem, format!("write 1 to {MAX_GPUS}")));
    }
    check_text("nic_model", &node.nic_model, MAX_NAME)?;
    if !(1..=MAX_CPUS).contains(&node.cpus) {
        let problem = format!("{} CPUs in a node", node.cpus);
        return Err(Fault::new("cpus", problem, format!("write 1 to {MAX_CPUS}")));
    }
    for (field, mib) in [("gpu_memory_mib", node.gpu_memory_mib), ("memory_mib", node.memory_mib)] {
        if !(1..=MAX_MEMORY_MIB).contains(&mib) {
            let problem = format!("{mib} MiB of memory");
            return Err(Fault::new(field, problem, format!("write 1 to {MAX_MEMORY_MIB}")));
        }
    }
    Ok(())
}

fn check_pairs(node: &NodeRecord) -> Result<(), Fault> {
    let counted = |field: &str, pairs: &BTreeMap<String, String>| match pairs.len() {
        0..=MAX_PAIRS => Ok(()),
        n => Err(Fault::new(field, format!("{n} entries"), format!("keep at most {MAX_PAIRS}"))),
    };
    counted("failure_domains", &node.failure_domains)?;
    for (kind, value) in &node.failure_domains {
        check_name("failure_domains", kind)?;
        let field = format!("failure_domains.{kind}");
        if kind == "rack" || kind == "site" {
            let problem = format!("{kind} is a failure domain by itself");
            return Err(Fault::new(&field, problem, format!("use the node's own field {kind}")));
        }
        check_name(&field, value)?;
    }
    counted("labels", &node.labels)?;
    for (key, value) in &node.labels {
        check_text("labels", key, MAX_LABEL)?;
        check_text(&format!("labels.{key}"), value, MAX_LABEL)?;
    }
    Ok(())
}

/// The members of a list of links: known, and none twice.
fn check_links(
    field: &str,
    what: &str,
    links: &[String],
    most: usize,
    known: &BTreeSet<&str>,
) -> Result<(), Fault> {
    if links.len() > most {
        let problem = format!("{} of them", links.len());
        return Err(Fault::new(field, problem, format!("keep at most {most}")));
    }
    let mut seen = BTreeSet::new();
    for link in links {
        if !known.contains(link.as_str()) {
            let problem = format!("unknown {what} {link:?}");
            let list = if what == "leaf" { "leafs" } else { "spines" };
            return Err(Fault::new(
                field,
                problem,
                format!("add it to {list} or correct the name"),
            ));
        }
        if !seen.insert(link) {
            return Err(twice(field, what, link));
        }
    }
    Ok(())
}

fn twice(field: &str, what: &str, name: &str) -> Fault {
    Fault::new(field, format!("{what} {name:?} is named twice"), "keep one")
}

/// Names travel through host lists, tables and environment variables: no blanks, commas, brackets.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::new(field, "an empty name".to_owned(), "write a name"));
    }
    check_text(field, name, MAX_NAME)?;
    let fine = |c: char| c.is_alphanumeric() || "-_./:@".contains(c);
    match name.chars().find(|&c| !fine(c)) {
        Some(bad) => {
            let problem = format!("the character {bad:?} in the name {name:?}");
            Err(Fault::new(field, problem, "use letters, digits and - _ . / : @"))
        }
        None => Ok(()),
    }
}

fn check_text(field: &str, text: &str, most: usize) -> Result<(), Fault> {
    if text.len() > most {
        let problem = format!("{} bytes", text.len());
        return Err(Fault::new(field, problem, format!("shorten it to {most}")));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(bad) => {
            let problem = format!("the control character {bad:?}");
            Err(Fault::new(field, problem, "leave it out"))
        }
        None => Ok(()),
    }
}
