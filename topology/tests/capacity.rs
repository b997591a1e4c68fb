//! What faulty links leave of a fabric.
#![expect(clippy::unwrap_used, reason = "helpers of tests, not marked #[test] themselves")]

use proptest::prelude::*;
use rowen_topology::*;

/// Two blocks of two nodes with 8 GPUs and 4 rails, under two spines.
fn record() -> FabricRecord {
    let yaml = "\
spines: s[1-2]
leafs:
  - { names: 'a[0-3],b[0-3]', spines: 's[1-2]' }
nodes:
  - { names: 'a-n[1-2]', leafs: 'a[0-3]', gpu: { model: H100, count: 8, memory_mib: 81559 }, cpus: 8, memory_mib: 1 }
  - { names: 'b-n[1-2]', leafs: 'b[0-3]', gpu: { model: H100, count: 8, memory_mib: 81559 }, cpus: 8, memory_mib: 1 }
";
    serde_saphyr::from_str::<Inventory>(yaml).unwrap().expand().unwrap()
}

fn rail(node: &str, leaf: &str, left_milli: u16) -> LinkFault {
    LinkFault { link: FaultyLink::Rail { node: node.into(), leaf: leaf.into() }, left_milli }
}

fn uplink(leaf: &str, spine: &str, left_milli: u16) -> LinkFault {
    LinkFault { link: FaultyLink::Uplink { leaf: leaf.into(), spine: spine.into() }, left_milli }
}

fn nvlink(node: &str, gpu: u16, left_milli: u16) -> LinkFault {
    LinkFault { link: FaultyLink::NvLink { node: node.into(), gpu }, left_milli }
}

/// The offers of the site, its pod, the two blocks, and the first node's domain and node.
fn check(faults: &[LinkFault], expect: [u32; 6]) {
    let record = record();
    let index = FlatIndex::build(&record).unwrap();
    let offers = offers(&record, &index, faults);
    let of = |level, ordinal| offers.gpus(DomainId { level, ordinal });
    let got = [
        of(Level::Site, 0),
        of(Level::Pod, 0),
        of(Level::Block, 0),
        of(Level::Block, 1),
        of(Level::Nvlink, 0),
        of(Level::Node, 0),
    ];
    assert_eq!(got, expect, "{faults:?}");
}

#[test]
fn a_fault_lowers_the_domains_above_it() {
    check(&[], [32, 32, 16, 16, 8, 8]);
    // Two of eight GPUs use the first NIC.
    check(&[rail("a-n1", "a0", 0)], [30, 30, 14, 16, 8, 8]);
    check(&[rail("a-n1", "a0", 500)], [31, 31, 15, 16, 8, 8]);
    // Half of a leaf's way up: the four GPUs below it on the rail are worth two beyond the block.
    check(&[uplink("a0", "s1", 0)], [30, 30, 16, 16, 8, 8]);
    check(&[uplink("a0", "s1", 0), uplink("a0", "s2", 0)], [28, 28, 16, 16, 8, 8]);
    check(&[nvlink("a-n1", 0, 0)], [31, 31, 15, 16, 7, 8]);
    // The same GPU is not lost twice, and the worse of two reports counts.
    check(&[nvlink("a-n1", 0, 0), rail("a-n1", "a0", 0)], [30, 30, 14, 16, 7, 8]);
    check(&[rail("a-n1", "a0", 900), rail("a-n1", "a0", 0)], [30, 30, 14, 16, 8, 8]);
    // Of what is not there nothing is lost.
    check(&[rail("gone", "a0", 0), uplink("a0", "s9", 0)], [32, 32, 16, 16, 8, 8]);
    assert_eq!(Health::Down.left_milli(), 0);
    assert_eq!(Health::Up.left_milli(), 1_000);
}

fn any_fault() -> impl Strategy<Value = LinkFault> {
    let node = || prop::sample::select(vec!["a-n1", "a-n2", "b-n1", "b-n2", "gone"]);
    let leaf = || prop::sample::select(vec!["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]);
    let spine = prop::sample::select(vec!["s1", "s2"]);
    prop_oneof![
        (node(), leaf(), 0..1_500_u16).prop_map(|(node, at, left)| rail(node, at, left)),
        (leaf(), spine, 0..1_500_u16).prop_map(|(at, spine, left)| uplink(at, spine, left)),
        (node(), 0..9_u16, 0..1_500_u16).prop_map(|(node, gpu, left)| nvlink(node, gpu, left)),
    ]
}

proptest! {
    /// Never more than there is, never more by another fault, and no domain offers more than its
    /// parts do together (each part rounds down by less than one GPU).
    #[test]
    fn faults_only_lower(faults in prop::collection::vec(any_fault(), 0..12)) {
        let record = record();
        let index = FlatIndex::build(&record).unwrap();
        let fewer = offers(&record, &index, &faults[..faults.len().saturating_sub(1)]);
        let all = offers(&record, &index, &faults);
        for level in Level::ALL {
            for ordinal in 0..index.domains(level).len() as u32 {
                let id = DomainId { level, ordinal };
                prop_assert!(all.gpus(id) <= fewer.gpus(id));
                prop_assert!(all.gpus(id) <= index.counts(id, None).capacity);
                if let Some(finer) = level.finer() {
                    let parts = index.children(id);
                    let count = parts.len() as u32;
                    let sum: u32 =
                        parts.map(|ordinal| all.gpus(DomainId { level: finer, ordinal })).sum();
                    prop_assert!(all.gpus(id) < sum + count.max(1));
                }
            }
        }
        // The nodes that are told apart are those for which something is lost, and by as much.
        let slow = impaired(&record, &index, &faults);
        prop_assert!(slow.windows(2).all(|pair| pair[0].pos < pair[1].pos));
        for block in 0..index.domains(Level::Block).len() as u32 {
            let id = DomainId { level: Level::Block, ordinal: block };
            let nodes = index.domain(id).nodes.clone();
            let left = |pos| {
                let found = slow.iter().find(|one| one.pos == NodePos(pos));
                found.map_or(1_000, |one| u32::from(one.left_milli(Level::Block)))
            };
            let sum: u32 = nodes.map(|pos| left(pos) * 8).sum();
            prop_assert!(all.gpus(id).abs_diff(sum / 1_000) <= 1, "{sum} and {}", all.gpus(id));
        }
    }
}
