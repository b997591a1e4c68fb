//! Importers: what they make of own-made samples, what they refuse, and that nothing breaks them.
#![expect(clippy::unwrap_used, reason = "helpers of tests, not marked #[test] themselves")]

mod support;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use rowen_topology::import::{Format, Imported, Options, import};
use rowen_topology::*;
use support::{Cables, Plan, options, topograph, topology_conf};

const SLURM_TREE: &str = include_str!("samples/tree.conf");
const SLURM_BLOCK: &str = include_str!("samples/block.conf");
const IBNETDISCOVER: &str = include_str!("samples/ibnetdiscover.txt");
const TOPOGRAPH: &str = include_str!("samples/topograph.yaml");
const NCCL: &str = include_str!("samples/nccl.xml");
const NVIDIA_SMI: &str = include_str!("samples/nvidia-smi.txt");

const SAMPLES: [(Format, &str); 6] = [
    (Format::Slurm, SLURM_TREE),
    (Format::Slurm, SLURM_BLOCK),
    (Format::Ibnetdiscover, IBNETDISCOVER),
    (Format::Topograph, TOPOGRAPH),
    (Format::Nccl, NCCL),
    (Format::NvidiaSmi, NVIDIA_SMI),
];

/// The domains, what is irregular in the fabric, and what the importer noted.
fn told(imported: &Imported) -> String {
    let record = imported.inventory.expand().unwrap();
    let mut out = outline(&FlatIndex::build(&record).unwrap());
    if let Some(inside) = &imported.inside {
        out.push_str(&inside.drawing());
    }
    for found in imported.inventory.fabric().unwrap().irregularities() {
        out.push_str(&format!("irregular: {found}\n"));
    }
    for remark in &imported.remarks {
        out.push_str(&format!("noted: {remark}\n"));
    }
    out
}

fn check(format: Format, text: &str, expect: &Expect) {
    expect.assert_eq(&told(&import(format, text, &Options::default()).unwrap()));
}

#[test]
fn slurm_trees() {
    check(Format::Slurm, SLURM_TREE, &expect![[r#""#]]);
}

#[test]
fn slurm_blocks() {
    check(Format::Slurm, SLURM_BLOCK, &expect![[r#""#]]);
}

#[test]
fn ibnetdiscover_finds_rails_racks_and_what_differs() {
    check(Format::Ibnetdiscover, IBNETDISCOVER, &expect![[r#""#]]);
    let imported = import(Format::Ibnetdiscover, IBNETDISCOVER, &Options::default()).unwrap();
    let record = imported.inventory.expand().unwrap();
    let rails: Vec<Option<u8>> = record.leafs.iter().map(|leaf| leaf.rail).collect();
    assert_eq!(rails[..3], [Some(0), Some(1), Some(2)]);
    let again: Inventory =
        serde_saphyr::from_str(&serde_saphyr::to_string(&imported.inventory).unwrap()).unwrap();
    assert_eq!(again, imported.inventory);
}

#[test]
fn topograph_models() {
    check(Format::Topograph, TOPOGRAPH, &expect![[r#""#]]);
}

#[test]
fn nccl_topologies() {
    check(Format::Nccl, NCCL, &expect![[r#""#]]);
}

#[test]
fn nvidia_smi_matrices() {
    check(Format::NvidiaSmi, NVIDIA_SMI, &expect![[r#""#]]);
    let imported = import(Format::NvidiaSmi, NVIDIA_SMI, &Options::default()).unwrap();
    let inside = imported.inside.unwrap();
    assert_eq!(inside.nearest_nics(), [Some(0), Some(0), Some(1), Some(1)]);
    assert_eq!(inside.hardware().gpu_count, Some(4));
}

#[test]
fn the_nodes_that_were_asked_for() {
    let options = |nodes: &str| Options { nodes: Some(nodes.to_owned()), ..Options::default() };
    let count = |format, text, nodes| {
        import(format, text, &options(nodes)).unwrap().inventory.expand().unwrap().nodes.len()
    };
    assert_eq!(count(Format::Slurm, SLURM_TREE, "n[1-3]"), 3);
    assert_eq!(count(Format::Ibnetdiscover, IBNETDISCOVER, "a1-n[1-2]"), 2);
    // A service machine counts where it is asked for by name.
    assert_eq!(count(Format::Ibnetdiscover, IBNETDISCOVER, "a1-n1,ufm"), 2);
    assert_eq!(count(Format::NvidiaSmi, NVIDIA_SMI, "n[1-16]"), 16);
    let error = import(Format::Slurm, SLURM_TREE, &options("n99")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "nodes: no node is called \"n99\" in this text; correct the name or leave it out"
    );
}

#[test]
fn refused_with_line_field_and_fix() {
    let cases = [
        (Format::Slurm, ""),
        (Format::Slurm, "SwitchName=a Switches=b\n"),
        (Format::Slurm, "SwitchName=a Nodes=n[1-2\n"),
        (Format::Slurm, "\n# x\nSwitchName=a Nodes=n1 Colour=red\n"),
        (Format::Slurm, "SwitchName=a Switches=b\nSwitchName=b Switches=a\n"),
        (Format::Slurm, "SwitchName=a Nodes=n1\nBlockName=b Nodes=n2\n"),
        (Format::Slurm, "BlockName=a Nodes=n1\nBlockName=b Nodes=n1\n"),
        (Format::Slurm, "BlockName=a Nodes=n[1-4]\nBlockSizes=4,12\n"),
        (Format::Slurm, "include other.conf\n"),
        (Format::Ibnetdiscover, "Ca 1 \"H-1\" # \"n1 mlx5_0\"\n"),
        (Format::Ibnetdiscover, "Switch 8 \"S-1\" # \"a\"\n[x] \"H-1\"[1]\n"),
        (Format::Ibnetdiscover, "Switch 8 \"S-1\" # \"a\"\n[1] \"H-1\"[1]\n[1] \"H-2\"[1]\n"),
        (Format::Ibnetdiscover, "Switch 8 \"S-1\" # \"a\"\n[1] \"H-1\"[1] # \"x y z\" lid 1\n"),
        (Format::Ibnetdiscover, "what is this\n"),
        (Format::Topograph, "blocks:\n- switch: a\n  nodes: [\"n[1-\"]\n"),
        (
            Format::Topograph,
            "switches:\n  a: { switches: [b] }\nblocks:\n- switch: c\n  nodes: [n1]\n",
        ),
        (Format::Topograph, "blocks:\n- switch: a\n  nodes: 7\n"),
        (Format::Topograph, "blocks: []\n"),
        (Format::Nccl, "<system>\n<cpu>\n</system>"),
        (Format::Nccl, "<system><cpu numaid=\"x\"/></system>"),
        (Format::Nccl, "<graphs/>"),
        (Format::Nccl, "<system><cpu numaid=\"0\"><pci/></cpu></system>"),
        (Format::NvidiaSmi, "GPU0 GPU1 CPU Affinity\nGPU0 X NV18 0-3 0\n"),
        (Format::NvidiaSmi, "GPU0 GPU1\nGPU0 X WHAT\nGPU1 PIX X\n"),
    ];
    let mut out = String::new();
    for (format, text) in cases {
        let error = import(format, text, &Options::default()).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        out.push_str(&format!("{}: {error}\n", format.as_str()));
    }
    expect![[r#""#]].assert_eq(&out);
}

fn any_plan(most_rails: usize) -> impl Strategy<Value = Plan> {
    let uplinks = prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.8), 4), 1..8);
    (1..6_usize, 1..7_usize, 1..=most_rails, 1..5_usize, uplinks, any::<bool>()).prop_map(
        |(racks, nodes, rails, spines, uplinks, lacking)| Plan {
            racks,
            nodes,
            rails,
            spines,
            uplinks,
            lacking,
        },
    )
}

/// Spines stand in no order of their own.
fn sorted(mut record: FabricRecord) -> FabricRecord {
    record.spines.sort();
    record.leafs.iter_mut().for_each(|leaf| leaf.spines.sort());
    record
}

fn imported(format: Format, text: &str) -> (FabricRecord, Imported) {
    let imported = import(format, text, &options()).unwrap();
    (sorted(imported.inventory.expand().unwrap()), imported)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_fabric_survives_ibnetdiscover(plan in any_plan(8)) {
        let want = plan.record();
        let (got, imported) = imported(Format::Ibnetdiscover, &Cables::of(&want).ibnetdiscover());
        prop_assert_eq!(&got, &want);
        prop_assert_eq!(imported.remarks, []);
        prop_assert_eq!(imported.assumed, Vec::<String>::new());
        // Two cables of 400 Gb/s to each spine, one to each node.
        let fabric = imported.inventory.fabric().unwrap();
        for link in fabric.graph().edge_weights() {
            match link.kind {
                LinkKind::Uplink => prop_assert_eq!((link.bandwidth_gbps, link.cables), (Some(800), 2)),
                LinkKind::Rail(_) => prop_assert_eq!((link.bandwidth_gbps, link.cables), (Some(400), 1)),
                _ => {}
            }
        }
        prop_assert_eq!(FlatIndex::build(&got).unwrap(), FlatIndex::build(&want).unwrap());
    }

    #[test]
    fn a_fabric_survives_topology_conf(plan in any_plan(8)) {
        let mut want = plan.record();
        want.nodes.iter_mut().for_each(|node| node.rack.clear());
        want.leafs.iter_mut().for_each(|leaf| leaf.rail = None);
        let (got, imported) = imported(Format::Slurm, &topology_conf(&want));
        prop_assert_eq!(got, want);
        prop_assert_eq!(imported.remarks, []);
    }

    #[test]
    fn a_fabric_survives_topograph(plan in any_plan(1)) {
        let mut want = plan.record();
        for node in &mut want.nodes {
            node.rack.clear();
            node.nvlink_domain = Some(format!("nvl-{}", node.leafs[0]));
        }
        let (got, imported) = imported(Format::Topograph, &topograph(&want));
        prop_assert_eq!(got, want);
        prop_assert_eq!(imported.remarks, []);
    }

    #[test]
    fn an_inventory_of_a_record_expands_to_it(plan in any_plan(8)) {
        let want = plan.record();
        prop_assert_eq!(Inventory::from_record(&want).expand().unwrap(), want);
    }

    /// Whatever stands in a file: an answer, never a panic, an error of one line.
    #[test]
    fn any_text_is_answered(text in any::<String>(), which in 0..5_usize) {
        answered(Format::ALL[which], &text);
    }

    #[test]
    fn a_broken_sample_is_answered(
        which in 0..SAMPLES.len(),
        edits in prop::collection::vec((any::<u32>(), any::<u32>(), 0..5_u8, any::<char>()), 1..6),
    ) {
        let (format, text) = SAMPLES[which];
        let mut chars: Vec<char> = text.chars().collect();
        for (a, b, kind, new) in edits {
            let (a, b) = (a as usize % (chars.len() + 1), b as usize % (chars.len() + 1));
            let (low, high) = (a.min(b), a.max(b));
            match kind {
                0 => drop(chars.drain(low..high.min(low + 40))),
                1 => chars.insert(low, new),
                2 => {
                    let copy: Vec<char> = chars[low..high].to_vec();
                    chars.splice(high..high, copy);
                }
                3 if low < chars.len() => chars[low] = new,
                _ if high < chars.len() => chars.swap(low, high),
                _ => {}
            }
        }
        answered(format, &chars.into_iter().collect::<String>());
    }
}

fn answered(format: Format, text: &str) {
    match import(format, text, &Options::default()) {
        Ok(imported) => {
            imported.inventory.fabric().unwrap().irregularities();
        }
        Err(error) => assert!(!error.to_string().contains(['\n', '\r'])),
    }
}

/// What the fuzzer started from and what it once found.
#[test]
fn the_fuzzers_corpora() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
    for format in Format::ALL {
        let folder = format!("{root}/{}", format.as_str().replace('-', "_"));
        let mut files = 0;
        for file in std::fs::read_dir(&folder).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            answered(format, &String::from_utf8_lossy(&bytes));
            files += 1;
        }
        assert!(files > 0, "{folder} is empty");
    }
}

/// Deep, wide and repetitive inputs stay within their bounds.
#[test]
fn hostile_sizes_are_bounded() {
    let deep = format!(
        "<system><cpu numaid=\"0\">{}{}</cpu></system>",
        "<pci busid=\"a\" class=\"0x0604\">".repeat(20_000),
        "</pci>".repeat(20_000)
    );
    answered(Format::Nccl, &deep);
    answered(Format::Topograph, &format!("blocks: {}", "[".repeat(20_000)));
    answered(Format::Slurm, &"SwitchName=s[1-60000] Switches=t[1-60000]\n".repeat(100));
    answered(Format::Slurm, &format!("SwitchName=a{}", "[1-9]".repeat(1_000)));
    let crowd: String = (0..255)
        .map(|port| format!("[{port}] \"H-{port}\"[1] # \"same mlx5_{port}\" lid 1 4xNDR\n"))
        .collect();
    answered(Format::Ibnetdiscover, &format!("Switch 255 \"S-1\" # \"s\"\n{crowd}"));
}
