//! Models of NVIDIA topograph: a tree of switches, and blocks of nodes on the lowest of them.
//!
//! What becomes of the tree stands in `tree`. An accelerator's `sub-domain`, else its `domain`, is
//! the NVLink domain; labels of zone and region that a switch bears are failure domains of all
//! nodes below it. Reads the models of topograph 0.3 and later (`switches`, `blocks`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::tree::{self, MAX_CHILDREN, MAX_SWITCHES, Switch};
use super::{ImportError, Imported, Options, Remark, keep_wanted, names};
use crate::{Inventory, NodeRecord, hostlist};

/// `topology.kubernetes.io/zone` and the like.
const KUBERNETES: &str = "topology.kubernetes.io/";
/// As written in models, and as topograph labels nodes.
const DOMAINS: [&str; 3] = [
    "accelerator.topology.test/domain",
    "accelerator.topograph.run/domain",
    "network.topology.nvidia.com/accelerator",
];
const SUB_DOMAINS: [&str; 2] =
    ["accelerator.topology.test/sub-domain", "accelerator.topograph.run/sub-domain"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(default)]
    switches: BTreeMap<String, Spanned<SwitchEntry>>,
    #[serde(default)]
    blocks: Vec<Spanned<Block>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchEntry {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    switches: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    switch: String,
    nodes: Vec<Spanned<String>>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

pub(super) fn import(text: &str, options: &Options) -> Result<Imported, ImportError> {
    let model: Model = serde_saphyr::from_str(text).map_err(|error| yaml_error(&error))?;
    let mut remarks = Vec::new();
    let plan = Plan::draw(&model, &mut remarks)?;
    let fields = tree::Fields { switches: "switches", nodes: "nodes" };
    let decorate = |node: &mut NodeRecord, way: &[usize]| plan.decorate(node, way);
    let mut record = tree::record(&plan.switches, &fields, options, &mut remarks, decorate)?;
    keep_wanted(&mut record, options)?;
    let inventory = Inventory::from_record(&record);
    Ok(Imported { inventory, remarks, assumed: options.hardware.assumed(), inside: None })
}

fn yaml_error(error: &serde_saphyr::Error) -> ImportError {
    let text = error.without_snippet().to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    ImportError {
        line: error.location().map(|at| at.line()).filter(|line| *line > 0),
        field: String::new(),
        problem: text.split_whitespace().collect::<Vec<_>>().join(" "),
        fix: "a model has switches: and blocks: with switch: and nodes:".to_owned(),
    }
}

/// The model with every name expanded.
struct Plan<'a> {
    switches: Vec<Switch>,
    /// By switch: what it bears.
    entries: Vec<Option<&'a SwitchEntry>>,
    /// By node: its block.
    block_of: BTreeMap<String, &'a Block>,
}

impl<'a> Plan<'a> {
    fn draw(model: &'a Model, remarks: &mut Vec<Remark>) -> Result<Plan<'a>, ImportError> {
        let mut plan =
            Plan { switches: Vec::new(), entries: Vec::new(), block_of: BTreeMap::new() };
        let mut at_of: BTreeMap<&str, usize> = BTreeMap::new();
        // In the order of the file, which is the operator's own, not that of the map.
        let mut entries: Vec<_> = model.switches.iter().collect();
        entries.sort_by_key(|(_, entry)| (entry.referenced.line(), entry.referenced.column()));
        for (name, entry) in &entries {
            let line = entry.referenced.line();
            at_of.insert(name, plan.switches.len());
            plan.add(line, name, Some(&entry.value))?;
            plan.last_mut().switches.clone_from(&entry.value.switches);
        }
        // The lowest switches are only named by those above them.
        for (_, entry) in &entries {
            for child in &entry.value.switches {
                if !at_of.contains_key(child.as_str()) {
                    at_of.insert(child, plan.switches.len());
                    plan.add(entry.referenced.line(), child, None)?;
                }
            }
        }
        let mut children: usize = entries.iter().map(|(_, e)| e.value.switches.len()).sum();
        for block in &model.blocks {
            let line = block.referenced.line();
            let name = block.value.switch.as_str();
            let at = match at_of.get(name) {
                Some(&at) => at,
                // Blocks alone are a model too.
                None if model.switches.is_empty() => {
                    at_of.insert(name, plan.switches.len());
                    plan.add(line, name, None)?;
                    plan.switches.len() - 1
                }
                None => {
                    let problem = format!("unknown switch {name:?}");
                    let fix = "list it under a switch or correct the name";
                    return Err(ImportError::at(line, "switch", problem, fix));
                }
            };
            plan.add_block(at, block, &mut children)?;
        }
        Plan::remark(model, remarks);
        Ok(plan)
    }

    fn last_mut(&mut self) -> &mut Switch {
        self.switches.last_mut().expect("called right after a switch was added")
    }

    fn add(
        &mut self,
        line: u64,
        name: &str,
        entry: Option<&'a SwitchEntry>,
    ) -> Result<(), ImportError> {
        if !names::usable(name) {
            let problem = format!("the name {name:?} cannot be used");
            let fix = "use letters, digits and - _ . / : @";
            return Err(ImportError::at(line, "switches", problem, fix));
        }
        if self.switches.len() == MAX_SWITCHES {
            let fix = format!("at most {MAX_SWITCHES} are possible");
            return Err(ImportError::at(line, "switches", "too many switches", fix));
        }
        let (switches, nodes) = (Vec::new(), Vec::new());
        self.switches.push(Switch { line, name: name.to_owned(), switches, nodes });
        self.entries.push(entry);
        Ok(())
    }

    fn add_block(
        &mut self,
        at: usize,
        block: &'a Spanned<Block>,
        children: &mut usize,
    ) -> Result<(), ImportError> {
        for list in &block.value.nodes {
            let line = list.referenced.line();
            let fix = "write names like node[1-8]";
            let bad = |problem: String| ImportError::at(line, "nodes", problem, fix);
            let nodes = hostlist::expand(&list.value).map_err(|error| bad(error.to_string()))?;
            *children += nodes.len();
            if *children > MAX_CHILDREN {
                return Err(bad("too many nodes up to here".to_owned()));
            }
            for node in nodes {
                if !names::usable(&node) {
                    return Err(bad(format!("the name {node:?} cannot be used")));
                }
                if self.block_of.insert(node.clone(), &block.value).is_some() {
                    return Err(bad(format!("node {node:?} is in two blocks")));
                }
                self.switches[at].nodes.push(node);
            }
        }
        Ok(())
    }

    fn remark(model: &Model, remarks: &mut Vec<Remark>) {
        let mut parts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for block in &model.blocks {
            let annotations = &block.value.annotations;
            if let (Some(domain), Some(part)) =
                (find(annotations, &DOMAINS), find(annotations, &SUB_DOMAINS))
            {
                parts.entry(domain).or_default().push(part.to_owned());
            }
        }
        for (domain, parts) in parts {
            let parts = hostlist::compress(&parts);
            let text = format!(
                "is an accelerator domain of several parts: {parts} are imported as NVLink domains, \
                 itself as failure domain"
            );
            remarks.push(Remark::new(domain, text));
        }
    }

    fn decorate(&self, node: &mut NodeRecord, way: &[usize]) {
        for at in way.iter().rev() {
            let Some(entry) = self.entries[*at] else { continue };
            for (key, value) in entry.labels.iter().chain(&entry.annotations) {
                match key.strip_prefix(KUBERNETES) {
                    Some("rack") => node.rack.clone_from(value),
                    Some("site") => node.site.clone_from(value),
                    Some(kind) => _ = node.failure_domains.insert(kind.to_owned(), value.clone()),
                    None => {}
                }
            }
        }
        let Some(block) = self.block_of.get(&node.name) else { return };
        let domain = find(&block.annotations, &DOMAINS);
        let sub_domain = find(&block.annotations, &SUB_DOMAINS);
        node.nvlink_domain = sub_domain.or(domain).map(str::to_owned);
        if let (Some(domain), Some(_)) = (domain, sub_domain) {
            node.failure_domains.insert("accelerator".to_owned(), domain.to_owned());
        }
        let known =
            |key: &String| DOMAINS.contains(&key.as_str()) || SUB_DOMAINS.contains(&key.as_str());
        let rest = block.annotations.iter().filter(|(key, _)| !known(key)).chain(&block.labels);
        node.labels.extend(rest.map(|(key, value)| (key.clone(), value.clone())));
    }
}

fn find<'a>(annotations: &'a BTreeMap<String, String>, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| annotations.get(*key)).map(String::as_str)
}
