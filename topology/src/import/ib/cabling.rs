//! Who hangs on whom: hosts, leafs and spines, told from what is plugged into what.
//!
//! A switch with hosts is a leaf, one with leafs alone a spine; a spine on which somebody plugged
//! a service machine is still a spine. Knows nothing of rails and racks.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{ImportError, Remark, names};
use super::parse::{Dump, Kind};

/// More than this are not of one machine.
const MAX_HCAS: usize = 64;

/// A machine: everything it has plugged in.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) hcas: Vec<Hca>,
}

/// One port of one HCA, and where its cable ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hca {
    /// `mlx5_` of `mlx5_0`.
    pub(super) prefix: String,
    /// 0 of `mlx5_0`.
    pub(super) number: u32,
    /// Its own port: dual-port HCAs have two.
    pub(super) port: u16,
    pub(super) switch: usize,
    pub(super) switch_port: u16,
    pub(super) gbps: Option<u32>,
    pub(super) device: usize,
}

/// An HCA that names no machine.
pub(super) struct Nameless {
    pub(super) switch: usize,
    pub(super) port: u16,
}

/// What a switch is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Leaf,
    Spine,
    /// Neither has hosts nor reaches a leaf.
    Beyond,
}

/// The tiers of a dump.
pub(super) struct Cabling<'a> {
    pub(super) hosts: Vec<Host>,
    pub(super) nameless: Vec<Nameless>,
    /// By device.
    names: Vec<&'a str>,
    tier: BTreeMap<usize, Tier>,
    /// By leaf: the spines, and the speed of each cable.
    up: BTreeMap<usize, BTreeMap<usize, Vec<Option<u32>>>>,
    /// By leaf: host and speed, one entry a cable.
    down: BTreeMap<usize, Vec<(usize, Option<u32>)>>,
}

impl<'a> Cabling<'a> {
    pub(super) fn find(
        dump: &Dump<'a>,
        wanted: Option<&[String]>,
        remarks: &mut Vec<Remark>,
    ) -> Result<Cabling<'a>, ImportError> {
        let switches = dump.devices.iter().filter(|device| device.kind == Kind::Switch).count();
        if switches == 0 {
            let hcas = dump.devices.len();
            let problem = format!("no switch, and {hcas} HCAs that hang on nothing");
            let fix = "run ibnetdiscover on a host whose port is up, and give all it prints";
            return Err(ImportError::whole(problem, fix));
        }
        let mut cabling = Cabling {
            hosts: Vec::new(),
            nameless: Vec::new(),
            names: switch_names(dump),
            tier: BTreeMap::new(),
            up: BTreeMap::new(),
            down: BTreeMap::new(),
        };
        cabling.collect_hosts(dump, wanted, remarks)?;
        if wanted.is_none() {
            cabling.leave_services_out(remarks);
        }
        cabling.find_tiers(dump, remarks);
        if cabling.hosts.is_empty() {
            let fix = "give the nodes names (the HCAs' node descriptions), or correct --nodes";
            return Err(ImportError::whole("no HCA on any switch names a host", fix));
        }
        cabling.hang(dump, remarks);
        Ok(cabling)
    }

    /// The name it goes by: its own, or its GUID where that is no name.
    pub(super) fn switch_name(&self, switch: usize) -> &'a str {
        self.names[switch]
    }

    pub(super) fn leafs(&self) -> impl Iterator<Item = usize> {
        self.tier.iter().filter(|(_, tier)| **tier == Tier::Leaf).map(|(at, _)| *at)
    }

    pub(super) fn spines(&self) -> impl Iterator<Item = usize> {
        self.tier.iter().filter(|(_, tier)| **tier == Tier::Spine).map(|(at, _)| *at)
    }

    /// The spines of a leaf, and the speed of each cable.
    pub(super) fn uplinks(&self, leaf: usize) -> BTreeMap<usize, Vec<Option<u32>>> {
        self.up.get(&leaf).cloned().unwrap_or_default()
    }

    /// The hosts of a leaf, and the speed of each cable.
    pub(super) fn downlinks(&self, leaf: usize) -> BTreeMap<usize, Vec<Option<u32>>> {
        let mut hosts: BTreeMap<usize, Vec<Option<u32>>> = BTreeMap::new();
        for (host, gbps) in self.down.get(&leaf).into_iter().flatten() {
            hosts.entry(*host).or_default().push(*gbps);
        }
        hosts
    }

    /// Every cable's speed, 0 for those to hosts, 1 for those to spines.
    pub(super) fn tiers(&self) -> impl Iterator<Item = (usize, Option<u32>)> {
        let down = self.down.values().flatten().map(|(_, gbps)| (0, *gbps));
        down.chain(self.up.values().flat_map(BTreeMap::values).flatten().map(|gbps| (1, *gbps)))
    }

    /// The leafs of a host in the order of its HCAs, each once.
    pub(super) fn leafs_of(&self, host: usize) -> Vec<usize> {
        let mut leafs = Vec::new();
        for hca in &self.hosts[host].hcas {
            if !leafs.contains(&hca.switch) {
                leafs.push(hca.switch);
            }
        }
        leafs
    }

    fn collect_hosts(
        &mut self,
        dump: &Dump<'a>,
        wanted: Option<&[String]>,
        remarks: &mut Vec<Remark>,
    ) -> Result<(), ImportError> {
        let wanted: Option<BTreeSet<&str>> =
            wanted.map(|list| list.iter().map(String::as_str).collect());
        let mut at_of: BTreeMap<&str, usize> = BTreeMap::new();
        for cable in &dump.cables {
            // HCAs have greater or smaller numbers than switches, as the dump lists them.
            let [a, b] = cable.ends;
            let ((device, port), (switch, switch_port)) =
                match (dump.devices[a.0].kind, dump.devices[b.0].kind) {
                    (Kind::Hca, Kind::Switch) => (a, b),
                    (Kind::Switch, Kind::Hca) => (b, a),
                    _ => continue,
                };
            let description = dump.devices[device].description;
            if is_aggregation(dump.devices[device].devid, description) {
                continue;
            }
            let Some((host, hca)) = host_and_hca(description) else {
                self.nameless.push(Nameless { switch, port: switch_port });
                continue;
            };
            if wanted.as_ref().is_some_and(|wanted| !wanted.contains(host)) {
                continue;
            }
            let (prefix, number) = names::ending(hca).unwrap_or((hca, 0));
            let prefix = prefix.to_owned();
            let gbps = cable.gbps;
            let hca = Hca { prefix, number, port, switch, switch_port, gbps, device };
            let at = *at_of.entry(host).or_insert_with(|| {
                self.hosts.push(Host { name: host.to_owned(), hcas: Vec::new() });
                self.hosts.len() - 1
            });
            self.hosts[at].hcas.push(hca);
        }
        for host in &mut self.hosts {
            host.hcas.sort();
        }
        let shared = self.hosts.extract_if(.., |host| host.hcas.len() > MAX_HCAS);
        for Host { name, hcas } in shared {
            let text = format!(
                "names {} HCAs: several machines bear this name, all are left out",
                hcas.len()
            );
            remarks.push(Remark::new(name, text));
        }
        let missing = wanted.iter().flatten().find(|name| !at_of.contains_key(*name));
        match missing {
            Some(name) => {
                let problem = format!("no HCA of the dump names the host {name:?}");
                let fix = "correct the name or leave it out";
                Err(ImportError { field: "nodes".to_owned(), ..ImportError::whole(problem, fix) })
            }
            None => Ok(()),
        }
    }

    /// A subnet manager or login host has at most half of the HCAs that others on its switches have.
    fn leave_services_out(&mut self, remarks: &mut Vec<Remark>) {
        let mut counts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, host) in self.hosts.iter().enumerate() {
            for switch in self.leafs_of(at) {
                counts.entry(switch).or_default().push(host.hcas.len());
            }
        }
        for list in counts.values_mut() {
            list.sort_unstable();
        }
        let typical = |switch: usize| counts[&switch][counts[&switch].len() / 2];
        let mut keep = Vec::new();
        for (at, host) in self.hosts.iter().enumerate() {
            let switches = self.leafs_of(at);
            let most = switches.iter().map(|switch| typical(*switch)).max().unwrap_or(0);
            keep.push(host.hcas.len() * 2 > most);
            if keep[at] {
                continue;
            }
            let on: Vec<&str> = switches.iter().map(|switch| self.names[*switch]).collect();
            let (own, on) = (host.hcas.len(), on.join(", "));
            let text = format!(
                "has {own} HCAs where others on {on} have {most}: taken for a service machine and \
                 left out (--nodes says otherwise)"
            );
            remarks.push(Remark::new(&host.name, text));
        }
        let mut keep = keep.into_iter();
        self.hosts.retain(|_| keep.next().unwrap_or(true));
    }

    fn find_tiers(&mut self, dump: &Dump<'a>, remarks: &mut Vec<Remark>) {
        let mut beside: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for cable in &dump.cables {
            let [(a, _), (b, _)] = cable.ends;
            if dump.devices[a].kind == Kind::Switch && dump.devices[b].kind == Kind::Switch {
                beside.entry(a).or_default().insert(b);
                beside.entry(b).or_default().insert(a);
            }
        }
        let mut hosts: BTreeMap<usize, usize> = BTreeMap::new();
        for hca in self.hosts.iter().flat_map(|host| &host.hcas) {
            *hosts.entry(hca.switch).or_default() += 1;
        }
        let near = |switch: usize| beside.get(&switch).into_iter().flatten().copied();
        // Each of its neighbours has hosts, and most far more than it: a spine with a service host.
        let outdone = |switch: usize, own: usize| {
            let others: Vec<usize> =
                near(switch).map(|other| hosts.get(&other).copied().unwrap_or(0)).collect();
            let far_more = others.iter().filter(|count| **count > 4 * own).count();
            others.len() > 1 && far_more * 2 > others.len()
        };
        for (&switch, &own) in &hosts {
            if !outdone(switch, own) {
                self.tier.insert(switch, Tier::Leaf);
            }
        }
        let switches = dump.devices.iter().enumerate().filter(|(_, d)| d.kind == Kind::Switch);
        let leafs: BTreeSet<usize> = self.leafs().collect();
        for (at, _) in switches.filter(|(at, _)| !leafs.contains(at)) {
            let spine = near(at).any(|other| leafs.contains(&other));
            self.tier.insert(at, if spine { Tier::Spine } else { Tier::Beyond });
            if !spine {
                let text = "has no host and reaches no leaf: left out, two tiers are kept";
                remarks.push(Remark::new(self.names[at], text));
            }
        }
        for &leaf in &leafs {
            for other in near(leaf).filter(|other| *other > leaf && leafs.contains(other)) {
                let text = format!("is cabled to the leaf {} past any spine", self.names[other]);
                remarks.push(Remark::new(self.names[leaf], text));
            }
        }
    }

    /// Takes hosts off spines, and notes every cable at its leaf.
    fn hang(&mut self, dump: &Dump<'a>, remarks: &mut Vec<Remark>) {
        let leafs: BTreeSet<usize> = self.leafs().collect();
        for host in &mut self.hosts {
            for hca in host.hcas.extract_if(.., |hca| !leafs.contains(&hca.switch)) {
                let text = format!("has an HCA on the spine {}: not used", self.names[hca.switch]);
                remarks.push(Remark::new(&host.name, text));
            }
        }
        self.hosts.retain(|host| !host.hcas.is_empty());
        for (at, host) in self.hosts.iter().enumerate() {
            for hca in &host.hcas {
                self.down.entry(hca.switch).or_default().push((at, hca.gbps));
            }
        }
        let spines: BTreeSet<usize> = self.spines().collect();
        for cable in &dump.cables {
            let [(a, _), (b, _)] = cable.ends;
            for (leaf, spine) in [(a, b), (b, a)] {
                if leafs.contains(&leaf) && spines.contains(&spine) {
                    let cables = self.up.entry(leaf).or_default().entry(spine).or_default();
                    cables.push(cable.gbps);
                }
            }
        }
    }
}

/// By device: `leaf-1` of `MF0;leaf-1:MQM9700/U1`; the GUID where that is no name or not unique.
fn switch_names<'a>(dump: &Dump<'a>) -> Vec<&'a str> {
    let short = |description: &'a str| {
        let name = description.split_once(';').map_or(description, |(_, rest)| rest);
        name.split_once(':').map_or(name, |(name, _)| name)
    };
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for device in dump.devices.iter().filter(|device| device.kind == Kind::Switch) {
        *seen.entry(short(device.description)).or_default() += 1;
    }
    let name = |device: &super::parse::Device<'a>| {
        let name = short(device.description);
        if seen.get(name) == Some(&1) && names::usable(name) { name } else { device.id }
    };
    dump.devices.iter().map(name).collect()
}

/// SHARP's own port in each switch.
fn is_aggregation(devid: Option<u32>, description: &str) -> bool {
    matches!(devid, Some(0xcf08..=0xcf0a)) || description.contains("Aggregation Node")
}

/// `node1 mlx5_0`, or `node1` alone. What a new HCA says of itself (`MT4129 ConnectX7   Mellanox
/// Technologies`) and a machine that was never named are nobody.
fn host_and_hca(description: &str) -> Option<(&str, &str)> {
    let mut words = description.split_whitespace();
    let (host, hca) = (words.next()?, words.next().unwrap_or_default());
    let nobody = ["localhost", "localhost.localdomain", "(none)"].contains(&host);
    if nobody || words.next().is_some() || !names::usable(host) {
        return None;
    }
    (hca.is_empty() || names::ending(hca).is_some()).then_some((host, hca))
}
