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
    check(
        Format::Slurm,
        SLURM_TREE,
        &expect![[r#"
        site core: 80 free of 80
          pod spine1: 64 free of 64
            block leaf1: 32 free of 32
              node n1: 8 free of 8
              node n2: 8 free of 8
              node n3: 8 free of 8
              node n4: 8 free of 8
            block leaf2: 32 free of 32
              node n5: 8 free of 8
              node n6: 8 free of 8
              node n7: 8 free of 8
              node n8: 8 free of 8
          pod spine2: 16 free of 16
            block leaf3: 16 free of 16
              node n09: 8 free of 8
              node n10: 8 free of 8
        site hall2: 24 free of 24
          pod hall2: 24 free of 24
            block far: 24 free of 24
              node m1: 8 free of 8
              node m2: 8 free of 8
              node m3: 8 free of 8
        noted: empty has neither nodes nor switches: left out
    "#]],
    );
}

#[test]
fn slurm_blocks() {
    check(
        Format::Slurm,
        SLURM_BLOCK,
        &expect![[r#"
        site default: 88 free of 88
          pod default: 88 free of 88
            block b1: 32 free of 32
              node n01: 8 free of 8
              node n02: 8 free of 8
              node n03: 8 free of 8
              node n04: 8 free of 8
            block b2: 32 free of 32
              node n05: 8 free of 8
              node n06: 8 free of 8
              node n07: 8 free of 8
              node n08: 8 free of 8
            block b3: 24 free of 24
              node n09: 8 free of 8
              node n10: 8 free of 8
              node n11: 8 free of 8
        noted: BlockSizes 8, 16 are sizes to plan for, over neighbours in the file, not cabling: the blocks keep their order and get no switch above
        noted: b3 has 3 nodes, fewer than the base block size 4
        noted: b4 is a block without nodes: left out
    "#]],
    );
}

#[test]
fn ibnetdiscover_finds_rails_racks_and_what_differs() {
    check(
        Format::Ibnetdiscover,
        IBNETDISCOVER,
        &expect![[r#"
        site default: 64 free of 64
          pod S-[01-02]: 64 free of 64
            block L-01-01,L-02-01,L-03-01: 16 free of 16
              node a1-n1: 8 free of 8
              node a1-n2: 8 free of 8
            block L-01-02,L-02-02,L-03-02: 24 free of 24
              node a2-n1: 8 free of 8
              node a2-n2: 8 free of 8
              node a2-n3: 8 free of 8
            block L-01-03,L-03-03: 24 free of 24
              node a3-n1: 8 free of 8
              node a3-n2: 8 free of 8
              node a3-n3: 8 free of 8
        irregular: leaf L-02-02 does not reach S-02, which most of its siblings do
        irregular: the NICs of a2-n1 are swapped: one after the other on rails 0, 2, 1
        irregular: rack a3 has no leaf for rail 1, by its siblings' names L-02-03
        irregular: leaf L-03-01 reaches S-01 at 400 Gb/s, where most have 800
        irregular: the link of leaf L-01-02 to a2-n3 is degraded
        noted: a2-n3 has a cable of 200 Gb/s to L-01-02, where most have 400
        noted: rack a1 has 3 HCAs without a host name on L-01-01,L-02-01,L-03-01, ports 3: their machines are left out until they have names
        noted: ufm has 1 HCAs where others on L-01-02 have 3: taken for a service machine and left out (--nodes says otherwise)
    "#]],
    );
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
    check(
        Format::Topograph,
        TOPOGRAPH,
        &expect![[r#"
        site core: 56 free of 56
          pod spine-1: 40 free of 40
            block leaf-1: 24 free of 24
              nvlink nvl-a-1: 24 free of 24
                node t11: 8 free of 8
                node t12: 8 free of 8
                node t14: 8 free of 8
            block leaf-2: 16 free of 16
              nvlink nvl-a-2: 16 free of 16
                node t21: 8 free of 8
                node t22: 8 free of 8
          pod spine-2: 16 free of 16
            block leaf-3: 16 free of 16
              nvlink nvl-b: 16 free of 16
                node t31: 8 free of 8
                node t32: 8 free of 8
        noted: leaf-4 has neither nodes nor switches: left out
        noted: nvl-a is an accelerator domain of several parts: nvl-a-[1-2] are imported as NVLink domains, itself as failure domain
    "#]],
    );
}

#[test]
fn nccl_topologies() {
    check(
        Format::Nccl,
        NCCL,
        &expect![[r#"
        site default: 3 free of 3
          pod default: 3 free of 3
            block default: 3 free of 3
              node node1: 3 free of 3
        numa 0: [GPU0 mlx5_0] [GPU1 mlx5_1]
        numa 1: [GPU2]
        3 of 3 pairs of GPUs are joined by NVLink
        noted: GPU2 has NVLinks for 32 where others have 34
        noted: GPU2 has its nearest NIC over SYS, others over PIX
    "#]],
    );
}

#[test]
fn nvidia_smi_matrices() {
    check(
        Format::NvidiaSmi,
        NVIDIA_SMI,
        &expect![[r#"
        site default: 4 free of 4
          pod default: 4 free of 4
            block default: 4 free of 4
              node node1: 4 free of 4
        numa 0: [GPU0 GPU1 mlx5_0]
        numa 1: [GPU2 GPU3 mlx5_3]
        6 of 6 pairs of GPUs are joined by NVLink
        noted: GPU1 has its nearest NIC over PXB, others over PIX
        noted: GPU2 has NVLinks for 48 where others have 54
        noted: GPU3 has NVLinks for 48 where others have 54
    "#]],
    );
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
    expect![[r#"
        slurm: no switch and no block is described; write SwitchName=leaf1 Nodes=node[1-8] or BlockName=b1 Nodes=node[1-8]
        slurm: line 1: Switches: unknown switch "b"; describe b on a line of its own or correct the name
        slurm: line 1: Nodes: a bracket without its partner in "n[1-2"; write names like node[1-8,12]
        slurm: line 3: Colour: not a key of topology.conf here; the keys are SwitchName, Switches, Nodes, LinkSpeed, BlockName, BlockSizes
        slurm: line 1: Switches: switch a is above itself, or deeper than 16 tiers; take one entry of the circle out
        slurm: line 2: BlockName: switches and blocks in one file; a topology.conf is of one plugin: keep one kind
        slurm: line 2: Nodes: "n1" is in block a already; keep it in one block
        slurm: line 2: BlockSizes: 12 does not follow 4; write the base block's nodes, then its multiples by powers of two: 8,16,32
        slurm: line 1: include: not of the form Key=value; write SwitchName=leaf1 Nodes=node[1-8] or BlockName=b1 Nodes=node[1-8]
        ibnetdiscover: no switch, and 1 HCAs that hang on nothing; run ibnetdiscover on a host whose port is up, and give all it prints
        ibnetdiscover: line 2: port: no port number in brackets; give the unchanged output of ibnetdiscover
        ibnetdiscover: line 3: port: port 1 of S-1 has two cables; give the unchanged output of ibnetdiscover
        ibnetdiscover: no HCA on any switch names a host; give the nodes names (the HCAs' node descriptions), or correct --nodes
        ibnetdiscover: line 1: cannot read "what is this"; give the unchanged output of ibnetdiscover
        topograph: line 3: nodes: a bracket without its partner in "n[1-"; write names like node[1-8]
        topograph: line 4: switch: unknown switch "c"; list it under a switch or correct the name
        topograph: line 3: expected sequence start; a model has switches: and blocks: with switch: and nodes:
        topograph: no switch has nodes; add nodes to the switches at the bottom
        nccl: line 3: not XML: expected 'cpu' tag, not 'system' at 3:1; give what NCCL_TOPO_DUMP_FILE writes
        nccl: line 1: numaid: "x" is not a whole number; write a number
        nccl: line 1: graphs: this is a graph dump: it says which way NCCL goes, not what there is; give what NCCL_TOPO_DUMP_FILE writes
        nccl: line 1: busid: missing; write the PCI address
        nvidia-smi: no row for GPU1; give the unchanged output of nvidia-smi topo -m
        nvidia-smi: line 2: GPU0: "WHAT" is no kind of path; write X, NV#, PIX, PXB, PHB, NODE or SYS
    "#]].assert_eq(&out);
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
