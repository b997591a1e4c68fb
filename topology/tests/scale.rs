//! The size the index is made for: 16,384 nodes, 131,072 GPUs.
#![expect(clippy::unwrap_used, reason = "helpers of tests, not marked #[test] themselves")]

mod support;

use rowen_topology::import::{Format, import};
use rowen_topology::*;
use support::{Cables, Plan};

/// 512 blocks of 32 nodes in 8 pods, 8 rails, four racks a block.
fn large() -> FabricRecord {
    let mut inventory = Inventory { spines: Some("s[0-7]p[0-7]".to_owned()), ..Default::default() };
    for block in 0..512 {
        let pod = block / 64;
        inventory.leafs.push(LeafGroup {
            names: format!("b{block}l[0-7]"),
            rail: None,
            spines: Some(format!("s[0-7]p{pod}")),
        });
        inventory.nodes.push(NodeGroup {
            names: format!("b{block}n[1-32]"),
            site: None,
            rack: Some(format!("b{block}r[1-4]")),
            leafs: Some(format!("b{block}l[0-7]")),
            nvlink_domain: None,
            gpu: GpuKind { model: "H100".to_owned(), count: 8, memory_mib: 81_559 },
            nic: Some("ConnectX-7".to_owned()),
            cpus: 192,
            memory_mib: 2 << 20,
            addr: None,
            failure_domains: [("power".to_owned(), format!("feed{}", block % 2))].into(),
            labels: Default::default(),
        });
    }
    inventory.expand().unwrap()
}

#[test]
fn a_fabric_of_131072_gpus() {
    let record = large();
    let fabric = Fabric::from_record(&record).unwrap();
    assert_eq!(fabric.irregularities(), []);
    let mut index = FlatIndex::build(&record).unwrap();
    let domains = Level::ALL.map(|level| index.domains(level).len());
    assert_eq!(domains, [1, 8, 512, 16_384, 16_384]);
    for pos in (0..index.node_count()).step_by(2).map(NodePos) {
        index.set_node(pos, 3, 4);
    }
    let site = DomainId { level: Level::Site, ordinal: 0 };
    let want = Counts { free: 8_192 * 11, reclaimable: 8_192 * 4, capacity: 131_072 };
    assert_eq!(index.counts(site, None), want);
}

/// Not a bar: figures for whoever changes an importer. `-- --nocapture` shows them.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may look at the clock; the crate may not")]
fn importing_131072_gpus() {
    let uplinks = vec![vec![true; 8]];
    let plan = Plan { racks: 512, nodes: 32, rails: 8, spines: 8, uplinks, lacking: false };
    let want = plan.record();
    let timed = |what: &str, text: &str, format| {
        let begin = std::time::Instant::now();
        let imported = import(format, text, &support::options()).unwrap();
        let read = begin.elapsed();
        let record = imported.inventory.expand().unwrap();
        let begin = std::time::Instant::now();
        let index = FlatIndex::build(&record).unwrap();
        let built = begin.elapsed();
        let nodes = index.node_count();
        let kib = text.len() >> 10;
        println!("{what}: {nodes} nodes, {kib} KiB: import {read:?}, index {built:?}");
        nodes
    };
    // A switch has 255 ports at most: so many leafs, on two cables each, hang on one tier of spines.
    let cabled = Plan { racks: 15, ..plan.clone() }.record();
    let nodes = timed("ibnetdiscover", &Cables::of(&cabled).ibnetdiscover(), Format::Ibnetdiscover);
    assert_eq!(nodes, 15 * 32);
    let nodes = timed("slurm tree", &support::topology_conf(&want), Format::Slurm);
    assert_eq!(nodes, 16_384);
    let plan = Plan { racks: 512, nodes: 32, rails: 1, spines: 8, ..plan };
    let nodes = timed("topograph", &support::topograph(&plan.record()), Format::Topograph);
    assert_eq!(nodes, 16_384);
    let begin = std::time::Instant::now();
    let index = FlatIndex::build(&want).unwrap();
    let built = begin.elapsed();
    let begin = std::time::Instant::now();
    let uplink = FaultyLink::Uplink { leaf: "r000-leaf0".into(), spine: "spine00".into() };
    let offers = offers(&want, &index, &[LinkFault { link: uplink, left_milli: 0 }]);
    println!("index {built:?}, offers with a fault {:?}", begin.elapsed());
    let site = DomainId { level: Level::Site, ordinal: 0 };
    // 32 GPUs behind a leaf that has lost one of eight uplinks.
    assert_eq!(offers.gpus(site), 131_072 - 4);
}
