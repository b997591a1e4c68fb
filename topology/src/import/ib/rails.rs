//! Rails and racks, as most hosts of a leaf have them, and who differs.
//!
//! A leaf serves the rail of the HCA that most of its hosts have plugged in there. Leafs that most
//! of their hosts share belong together, and those hosts are a rack. Never moves a host that
//! differs: the graph tells of it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Remark, names};
use super::cabling::Cabling;
use crate::hostlist::compress;

/// What was found.
pub(super) struct Wiring {
    /// By leaf.
    rails: BTreeMap<usize, u8>,
    /// By host: its group of leafs.
    group_of: Vec<usize>,
    /// By leaf: its group.
    group_of_leaf: BTreeMap<usize, usize>,
    /// By group: the rack's name, perhaps none.
    racks: Vec<String>,
}

impl Wiring {
    pub(super) fn find(cabling: &Cabling<'_>, remarks: &mut Vec<Remark>) -> Wiring {
        let group_of_leaf = group_leafs(cabling);
        let groups = group_of_leaf.values().max().map_or(0, |last| last + 1);
        let group_of: Vec<usize> = (0..cabling.hosts.len())
            .map(|host| most(cabling.leafs_of(host).iter().map(|leaf| group_of_leaf[leaf])))
            .collect();
        let racks = rack_names(cabling, &group_of, groups);
        let wiring = Wiring { rails: rails(cabling), group_of, group_of_leaf, racks };
        wiring.nameless(cabling, remarks);
        crossed_ports(cabling, remarks);
        wiring
    }

    pub(super) fn rail_of(&self, leaf: usize) -> Option<u8> {
        self.rails.get(&leaf).copied()
    }

    pub(super) fn rack_of(&self, host: usize) -> &str {
        &self.racks[self.group_of[host]]
    }

    /// Rack by rack, in the order of their names.
    pub(super) fn leafs_in_order(&self, cabling: &Cabling<'_>) -> Vec<usize> {
        let mut leafs: Vec<usize> = cabling.leafs().collect();
        leafs.sort_by(|a, b| {
            let (x, y) = (self.group_of_leaf[a], self.group_of_leaf[b]);
            let racks = names::natural(&self.racks[x], &self.racks[y]).then(x.cmp(&y));
            let rails = self.rail_of(*a).cmp(&self.rail_of(*b));
            racks.then(rails).then(names::natural(cabling.switch_name(*a), cabling.switch_name(*b)))
        });
        leafs
    }

    /// Rack by rack, in the order of their names.
    pub(super) fn hosts_in_order(&self, cabling: &Cabling<'_>) -> Vec<usize> {
        let mut hosts: Vec<usize> = (0..cabling.hosts.len()).collect();
        hosts.sort_by(|a, b| {
            let (x, y) = (self.group_of[*a], self.group_of[*b]);
            let racks = names::natural(&self.racks[x], &self.racks[y]).then(x.cmp(&y));
            racks.then(names::natural(&cabling.hosts[*a].name, &cabling.hosts[*b].name))
        });
        hosts
    }

    /// HCAs that name no machine: one machine a port, by the look of its rack.
    fn nameless(&self, cabling: &Cabling<'_>, remarks: &mut Vec<Remark>) {
        let mut found: BTreeMap<usize, (usize, BTreeSet<u16>, BTreeSet<usize>)> = BTreeMap::new();
        for hca in &cabling.nameless {
            let Some(&group) = self.group_of_leaf.get(&hca.switch) else {
                let text = format!("has an HCA without a host name on port {}: left out", hca.port);
                remarks.push(Remark::new(cabling.switch_name(hca.switch), text));
                continue;
            };
            let (count, ports, leafs) = found.entry(group).or_default();
            *count += 1;
            ports.insert(hca.port);
            leafs.insert(hca.switch);
        }
        for (group, (count, ports, leafs)) in found {
            let mut leafs: Vec<String> =
                leafs.into_iter().map(|leaf| cabling.switch_name(leaf).to_owned()).collect();
            leafs.sort_by(|a, b| names::natural(a, b));
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            let leafs = compress(&leafs);
            let rack = &self.racks[group];
            let member = if rack.is_empty() { leafs.clone() } else { format!("rack {rack}") };
            let ports = ports.join(", ");
            let text = format!(
                "has {count} HCAs without a host name on {leafs}, ports {ports}: their machines \
                 are left out until they have names"
            );
            remarks.push(Remark::new(member, text));
        }
    }
}

/// The value that occurs most often; of equals the smallest.
fn most(values: impl Iterator<Item = usize>) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let best = counts.into_iter().max_by_key(|(value, count)| (*count, std::cmp::Reverse(*value)));
    best.map_or(0, |(value, _)| value)
}

/// By leaf: which HCA most of its hosts have there, as a number counted over all leafs.
fn rails(cabling: &Cabling<'_>) -> BTreeMap<usize, u8> {
    type Slot<'a> = (&'a str, u32, u16);
    let mut on: BTreeMap<usize, BTreeMap<Slot<'_>, usize>> = BTreeMap::new();
    let mut hosts_on: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (at, host) in cabling.hosts.iter().enumerate() {
        for hca in &host.hcas {
            let slot = (hca.prefix.as_str(), hca.number, hca.port);
            *on.entry(hca.switch).or_default().entry(slot).or_default() += 1;
            hosts_on.entry(hca.switch).or_default().insert(at);
        }
    }
    let mut slot_of: BTreeMap<usize, Slot<'_>> = BTreeMap::new();
    for (leaf, slots) in on {
        let hcas: usize = slots.values().sum();
        let best = slots.into_iter().max_by_key(|(slot, count)| (*count, std::cmp::Reverse(*slot)));
        // Several HCAs of each host on one leaf: no rails here.
        let one_each = hcas < 2 * hosts_on[&leaf].len();
        if let Some((slot, _)) = best.filter(|_| one_each) {
            slot_of.insert(leaf, slot);
        }
    }
    let mut known: BTreeMap<&str, BTreeSet<Slot<'_>>> = BTreeMap::new();
    for slot in slot_of.values() {
        known.entry(slot.0).or_default().insert(*slot);
    }
    // With one slot in all there is a single rail, which is none.
    known.retain(|_, slots| slots.len() > 1);
    let rank = |slot: &Slot<'_>| {
        let place = known.get(slot.0)?.iter().position(|other| other == slot)?;
        u8::try_from(place).ok().filter(|rail| *rail < 64)
    };
    slot_of.iter().filter_map(|(leaf, slot)| Some((*leaf, rank(slot)?))).collect()
}

/// By leaf: its group. Two leafs belong together where more than half of the hosts of one hang on
/// the other too: one cable in the wrong rack joins nothing.
fn group_leafs(cabling: &Cabling<'_>) -> BTreeMap<usize, usize> {
    let mut sets: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    for host in 0..cabling.hosts.len() {
        let mut leafs = cabling.leafs_of(host);
        leafs.sort_unstable();
        *sets.entry(leafs).or_default() += 1;
    }
    let mut hosts_on: BTreeMap<usize, usize> = BTreeMap::new();
    let mut shared: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (leafs, count) in &sets {
        for (i, a) in leafs.iter().enumerate() {
            *hosts_on.entry(*a).or_default() += count;
            for b in &leafs[i + 1..] {
                *shared.entry((*a, *b)).or_default() += count;
            }
        }
    }
    let mut head: BTreeMap<usize, usize> = hosts_on.keys().map(|leaf| (*leaf, *leaf)).collect();
    for ((a, b), count) in shared {
        if 2 * count > hosts_on[&a].min(hosts_on[&b]) {
            let (a, b) = (find(&mut head, a), find(&mut head, b));
            head.insert(a.max(b), a.min(b));
        }
    }
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    // Numbered as people would count them: a dump lists switches in no order.
    let mut leafs: Vec<usize> = head.keys().copied().collect();
    leafs.sort_by(|a, b| names::natural(cabling.switch_name(*a), cabling.switch_name(*b)));
    let mut group = BTreeMap::new();
    for leaf in leafs {
        let root = find(&mut head, leaf);
        let next = numbers.len();
        group.insert(leaf, *numbers.entry(root).or_insert(next));
    }
    group
}

/// The first leaf of the group, shortening the way for the next who asks.
fn find(head: &mut BTreeMap<usize, usize>, leaf: usize) -> usize {
    let mut root = leaf;
    while head[&root] != root {
        root = head[&root];
    }
    let mut at = leaf;
    while head[&at] != root {
        at = head.insert(at, root).unwrap_or(root);
    }
    root
}

/// By group: what its hosts' names begin with. Where that tells no two apart, numbers.
fn rack_names(cabling: &Cabling<'_>, group_of: &[usize], groups: usize) -> Vec<String> {
    let mut members: Vec<Vec<&str>> = vec![Vec::new(); groups];
    for (host, group) in group_of.iter().enumerate() {
        members[*group].push(&cabling.hosts[host].name);
    }
    let stems: Vec<&str> =
        members.iter().map(|names| names::common_stem(names.iter().copied())).collect();
    let distinct: BTreeSet<&str> = stems.iter().copied().collect();
    let telling = distinct.len() == groups && !distinct.contains("");
    let name = |(at, stem): (usize, &&str)| match (telling, groups) {
        (true, _) => (*stem).to_owned(),
        (false, 1) => String::new(),
        (false, _) => format!("rack-{}", at + 1),
    };
    stems.iter().enumerate().map(name).collect()
}

/// Where nearly every host uses the same port number on all its leafs, one that does not was
/// plugged in wrongly, if harmlessly.
fn crossed_ports(cabling: &Cabling<'_>, remarks: &mut Vec<Remark>) {
    let usual = |host: usize| most(cabling.hosts[host].hcas.iter().map(|h| h.switch_port.into()));
    let differs = |host: usize| {
        let usual = usual(host);
        cabling.hosts[host].hcas.iter().find(|hca| usize::from(hca.switch_port) != usual)
    };
    let wired: Vec<usize> =
        (0..cabling.hosts.len()).filter(|host| cabling.hosts[*host].hcas.len() > 2).collect();
    let crossed: Vec<usize> =
        wired.iter().copied().filter(|host| differs(*host).is_some()).collect();
    if crossed.len() * 10 > wired.len() {
        return;
    }
    for host in crossed {
        let Some(hca) = differs(host) else { continue };
        let leaf = cabling.switch_name(hca.switch);
        let (port, usual) = (hca.switch_port, usual(host));
        let text = format!("sits on port {port} of {leaf} and on port {usual} of its other leafs");
        remarks.push(Remark::new(&cabling.hosts[host].name, text));
    }
}
