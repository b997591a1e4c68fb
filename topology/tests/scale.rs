//! The size the index is made for: 16,384 nodes, 131,072 GPUs.
#![expect(clippy::unwrap_used, reason = "helpers of tests, not marked #[test] themselves")]

use rowen_topology::*;

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
