//! `ibnetdiscover` dumps: which machines, leafs, spines and rails there are, from the cabling.
//!
//! Hosts' HCAs hang on leafs, spines have leafs alone; a rail is what the same HCA of most hosts
//! of a leaf says; a rack is the hosts that hang together on the same leafs. What has no name of
//! its own or too few HCAs to compute is left out and remarked on. `parse` reads the text,
//! `cabling` finds the tiers, `rails` the rails and racks; here the record is put together.

mod cabling;
mod parse;
mod rails;

use std::collections::{BTreeMap, BTreeSet};

use self::cabling::Cabling;
use self::parse::Dump;
use self::rails::Wiring;
use super::{ImportError, Imported, Options, Remark, names, site_of, wanted_nodes};
use crate::hostlist::compress;
use crate::{FabricRecord, Health, Inventory, LeafRecord, LinkGroup};

pub(super) fn import(text: &str, options: &Options) -> Result<Imported, ImportError> {
    let dump = Dump::read(text)?;
    let wanted = wanted_nodes(options)?;
    let mut remarks = Vec::new();
    let cabling = Cabling::find(&dump, wanted.as_deref(), &mut remarks)?;
    let wiring = Wiring::find(&cabling, &mut remarks);
    let mut hardware = options.hardware.clone();
    hardware.nic_model = hardware.nic_model.or_else(|| nic_model(&dump, &cabling));

    let mut record =
        FabricRecord { spines: sorted(&cabling, cabling.spines()), ..Default::default() };
    for leaf in wiring.leafs_in_order(&cabling) {
        let spines = sorted(&cabling, cabling.uplinks(leaf).into_keys());
        let (name, rail) = (cabling.switch_name(leaf).to_owned(), wiring.rail_of(leaf));
        record.leafs.push(LeafRecord { name, rail, spines });
    }
    for host in wiring.hosts_in_order(&cabling) {
        let mut node = hardware.node(cabling.hosts[host].name.clone(), site_of(options));
        node.rack = wiring.rack_of(host).to_owned();
        let leafs = cabling.leafs_of(host);
        node.leafs = leafs.iter().map(|leaf| cabling.switch_name(*leaf).to_owned()).collect();
        record.nodes.push(node);
    }
    let mut inventory = Inventory::from_record(&record);
    inventory.links = links(&cabling, &mut remarks);
    Ok(Imported { inventory, remarks, assumed: hardware.assumed(), inside: None })
}

fn sorted(cabling: &Cabling<'_>, switches: impl Iterator<Item = usize>) -> Vec<String> {
    let mut list: Vec<String> = switches.map(|at| cabling.switch_name(at).to_owned()).collect();
    list.sort_by(|a, b| names::natural(a, b));
    list
}

/// The model that all HCAs of the nodes are of, by their device number.
fn nic_model(dump: &Dump<'_>, cabling: &Cabling<'_>) -> Option<String> {
    let hcas = cabling.hosts.iter().flat_map(|host| &host.hcas);
    let ids: BTreeSet<Option<u32>> = hcas.map(|hca| dump.devices[hca.device].devid).collect();
    let name = match ids.into_iter().collect::<Vec<_>>().as_slice() {
        [Some(0x1013)] => "ConnectX-4",
        [Some(0x1017 | 0x1019)] => "ConnectX-5",
        [Some(0x101b | 0x101d)] => "ConnectX-6",
        [Some(0x1021)] => "ConnectX-7",
        [Some(0x1023)] => "ConnectX-8",
        _ => return None,
    };
    Some(name.to_owned())
}

/// Bandwidth, cables and health of one link.
type Measured = (Option<u32>, u16, Option<Health>);

/// What the cables carry, those alike in groups. Slower than most cables of its tier is degraded.
fn links(cabling: &Cabling<'_>, remarks: &mut Vec<Remark>) -> Vec<LinkGroup> {
    let mut usual: [BTreeMap<u32, usize>; 2] = Default::default();
    for (tier, cable) in cabling.tiers() {
        *usual[tier].entry(cable.unwrap_or(0)).or_default() += 1;
    }
    let usual =
        usual.map(|speeds| speeds.into_iter().max_by_key(|(_, n)| *n).map(|(gbps, _)| gbps));
    let mut groups: BTreeMap<(bool, Measured, Vec<String>), Vec<usize>> = BTreeMap::new();
    let mut add = |leaf: usize, down: bool, ends: Vec<(String, Vec<Option<u32>>)>| {
        let mut alike: BTreeMap<Measured, Vec<String>> = BTreeMap::new();
        for (name, cables) in ends {
            let slow =
                cables.iter().flatten().find(|gbps| Some(**gbps) < usual[usize::from(!down)]);
            if let Some(gbps) = slow {
                let most = usual[usize::from(!down)].unwrap_or_default();
                let text = format!(
                    "has a cable of {gbps} Gb/s to {}, where most have {most}",
                    cabling.switch_name(leaf)
                );
                remarks.push(Remark::new(&name, text));
            }
            let gbps = cables.iter().copied().sum::<Option<u32>>();
            let measured = (gbps, cables.len() as u16, slow.map(|_| Health::Degraded));
            alike.entry(measured).or_default().push(name);
        }
        for (measured, mut list) in alike {
            list.sort_by(|a, b| names::natural(a, b));
            groups.entry((!down, measured, list)).or_default().push(leaf);
        }
    };
    for leaf in cabling.leafs() {
        let hosts = cabling.downlinks(leaf).into_iter();
        add(leaf, true, hosts.map(|(at, c)| (cabling.hosts[at].name.clone(), c)).collect());
        let spines = cabling.uplinks(leaf).into_iter();
        add(leaf, false, spines.map(|(at, c)| (cabling.switch_name(at).to_owned(), c)).collect());
    }
    let group = |(key, leafs): ((bool, Measured, Vec<String>), Vec<usize>)| {
        let (up, (gbps, cables, health), others) = key;
        let others = Some(compress(&others));
        LinkGroup {
            leafs: compress(&sorted(cabling, leafs.into_iter())),
            nodes: others.clone().filter(|_| !up),
            spines: others.filter(|_| up),
            gbps,
            cables: Some(cables).filter(|n| *n > 1),
            health,
        }
    };
    groups.into_iter().map(group).collect()
}
