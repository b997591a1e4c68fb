//! Small drawings in, outlines, irregularities and distances out.
#![expect(clippy::unwrap_used, reason = "helpers of tests, not marked #[test] themselves")]

use expect_test::{Expect, expect};
use rowen_topology::*;

/// The hierarchy and what is irregular in it.
fn check(drawing: &str, want: Expect) {
    let record = drawing::parse(drawing).unwrap();
    let mut out = outline(&FlatIndex::build(&record).unwrap());
    for found in Fabric::from_record(&record).unwrap().irregularities() {
        out.push_str(&format!("! {found}\n"));
    }
    want.assert_eq(&out);
}

#[test]
fn two_blocks_one_pod() {
    check(
        "block b0: node[1-2] x8
         block b1: node[3-4] x8 H200",
        expect![[r#"
            site lab: 32 free of 32
              pod pod-spine: 32 free of 32
                block b0-leaf: 16 free of 16
                  node node1: 8 free of 8
                  node node2: 8 free of 8
                block b1-leaf: 16 free of 16
                  node node3: 8 free of 8
                  node node4: 8 free of 8
        "#]],
    );
}

#[test]
fn nodes_stand_in_hierarchy_order_whatever_the_record() {
    let mut record = drawing::parse(
        "pod p0
         block b0: a[1-2] x1
         pod p1
         block b1: b[1-2] x1
         pod p0
         block b2: c1 x1",
    )
    .unwrap();
    record.nodes.swap(1, 2);
    expect![[r#"
        site lab: 5 free of 5
          pod p0-spine: 3 free of 3
            block b0-leaf: 2 free of 2
              node a1: 1 free of 1
              node a2: 1 free of 1
            block b2-leaf: 1 free of 1
              node c1: 1 free of 1
          pod p1-spine: 2 free of 2
            block b1-leaf: 2 free of 2
              node b1: 1 free of 1
              node b2: 1 free of 1
    "#]]
    .assert_eq(&outline(&FlatIndex::build(&record).unwrap()));
}

#[test]
fn an_nvlink_domain_over_two_blocks_is_cut_and_reported() {
    check(
        "block b0: node[1-2] x4
         block b1: node[3-4] x4
         nvlink nvl1: node[1-3]",
        expect![[r#"
            site lab: 16 free of 16
              pod pod-spine: 16 free of 16
                block b0-leaf: 8 free of 8
                  nvlink nvl1/b0-leaf: 8 free of 8
                    node node1: 4 free of 4
                    node node2: 4 free of 4
                block b1-leaf: 8 free of 8
                  node node3: 4 free of 4
                  node node4: 4 free of 4
            ! NVLink domain nvl1 reaches over several blocks: b0-leaf and b1-leaf
        "#]],
    );
}

#[test]
fn nodes_without_leafs_form_a_block_a_rack_or_a_site() {
    check(
        "loose: a[1-3] x1
         rack r1: a[1-2]
         site far
         loose: b[1-2] x1",
        expect![[r#"
            site lab: 3 free of 3
              pod lab: 3 free of 3
                block r1: 2 free of 2
                  node a1: 1 free of 1
                  node a2: 1 free of 1
                block lab: 1 free of 1
                  node a3: 1 free of 1
            site far: 2 free of 2
              pod far: 2 free of 2
                block far: 2 free of 2
                  node b1: 1 free of 1
                  node b2: 1 free of 1
        "#]],
    );
}

#[test]
fn a_leaf_over_two_sites_is_a_block_in_each() {
    let mut record = drawing::parse("block b0: n[1-2] x1").unwrap();
    record.nodes[1].site = "far".to_owned();
    let mut out = outline(&FlatIndex::build(&record).unwrap());
    for found in Fabric::from_record(&record).unwrap().irregularities() {
        out.push_str(&format!("! {found}\n"));
    }
    expect![[r#"
        site lab: 1 free of 1
          pod pod-spine/lab: 1 free of 1
            block b0-leaf/pod-spine/lab: 1 free of 1
              node n1: 1 free of 1
        site far: 1 free of 1
          pod pod-spine/far: 1 free of 1
            block b0-leaf/pod-spine/far: 1 free of 1
              node n2: 1 free of 1
        ! leaf b0-leaf has nodes in several sites: lab, far
    "#]]
    .assert_eq(&out);
}

/// Rails 0 to 3 on leafs l0 to l3; each leaf reaches spines s1 and s2.
fn railed(nodes: u32) -> FabricRecord {
    let mut record =
        drawing::parse(&format!("loose: n[1-{nodes}] x4\nrack r1: n[1-{nodes}]")).unwrap();
    record.spines = vec!["s1".to_owned(), "s2".to_owned()];
    for rail in 0..4_u8 {
        let spines = record.spines.clone();
        record.leafs.push(LeafRecord { name: format!("l{rail}"), rail: Some(rail), spines });
    }
    for node in &mut record.nodes {
        node.leafs = (0..4).map(|rail| format!("l{rail}")).collect();
    }
    record
}

fn irregular(change: impl Fn(&mut FabricRecord), want: Expect) {
    let mut record = railed(4);
    change(&mut record);
    let found = Fabric::from_record(&record).unwrap().irregularities();
    want.assert_eq(&found.iter().map(|found| format!("{found}\n")).collect::<String>());
}

#[test]
fn irregularities() {
    irregular(|_| (), expect![""]);
    irregular(
        |record| _ = record.leafs[2].spines.pop(),
        expect![[r#"
        leaf l2 does not reach s2, which most of its siblings do
    "#]],
    );
    irregular(
        |record| record.leafs[2].spines.clear(),
        expect![[r#"
        leaf l2 reaches no spine, though others do
    "#]],
    );
    irregular(
        |record| _ = record.nodes[3].leafs.remove(1),
        expect![[r#"
            in rack r1, n4 without rail 1, which most others have
        "#]],
    );
    irregular(
        |record| {
            record.leafs.push(LeafRecord {
                name: "x1".to_owned(),
                rail: Some(1),
                spines: vec!["s1".to_owned(), "s2".to_owned()],
            });
            record.nodes[0].leafs[1] = "x1".to_owned();
        },
        expect![[r#"
            in rack r1, the leafs of n1 are l[0,2-3],x1, those of others l[0-3]
        "#]],
    );
    irregular(
        |record| {
            record.leafs.push(LeafRecord {
                name: "spare".to_owned(),
                rail: None,
                spines: vec!["s1".to_owned(), "s2".to_owned()],
            });
            record.spines.push("s9".to_owned());
        },
        expect![[r#"
            no node hangs on leaf spare
            no leaf reaches spine s9
        "#]],
    );
    // Of two nodes with 4 and 3 rails the one with fewer lacks something.
    irregular(
        |record| {
            record.nodes.truncate(2);
            record.nodes[0].leafs.truncate(3);
        },
        expect![[r#"
            in rack r1, n1 without rail 3, which most others have
        "#]],
    );
}

#[test]
fn a_node_that_lacks_a_rail_is_a_block_of_its_own() {
    let mut record = railed(3);
    record.nodes[1].leafs.remove(1);
    let index = FlatIndex::build(&record).unwrap();
    let blocks: Vec<&str> = index.domains(Level::Block).iter().map(|b| b.name.as_str()).collect();
    assert_eq!(blocks, ["l[0-3]", "l[0,2-3]"]);
    assert_eq!(index.domains(Level::Pod).len(), 1);
    // Its rails keep their numbers, since the leafs declare them.
    let fabric = Fabric::from_record(&record).unwrap();
    let rail2 = fabric.neighbours(fabric.node(1), |kind| kind == LinkKind::Rail(2));
    assert_eq!(fabric.vertex(rail2[0]).unwrap().kind, VertexKind::Leaf("l2".to_owned()));
}

#[test]
fn distances() {
    let record = drawing::parse(
        "pod p0
         block b0: a[1-2] x1
         block b1: b[1-2] x1
         pod p1
         block b2: c1 x1
         nvlink nvl: b[1-2]",
    )
    .unwrap();
    let fabric = Fabric::from_record(&record).unwrap();
    let at =
        |name: &str| fabric.node(record.nodes.iter().position(|node| node.name == name).unwrap());
    assert_eq!(fabric.distance(at("a1"), at("a1")), Some(0));
    assert_eq!(fabric.distance(at("b1"), at("b2")), Some(0));
    assert_eq!(fabric.distance(at("a1"), at("a2")), Some(1));
    assert_eq!(fabric.distance(at("a1"), at("b1")), Some(2));
    assert_eq!(fabric.distance(at("a1"), at("c1")), None);
}

#[test]
fn ids_outlive_removals() {
    let record = drawing::parse("block b0: n[1-3] x1").unwrap();
    let mut fabric = Fabric::from_record(&record).unwrap();
    let (first, second) = (fabric.node(0), fabric.node(1));
    let third = fabric.vertex(fabric.node(2)).unwrap().clone();
    assert_eq!(fabric.remove(second).unwrap().id, second);
    assert_eq!(fabric.remove(second), None);
    assert_eq!(fabric.vertex(second), None);
    assert_eq!(fabric.vertex(third.id), Some(&third));
    assert_eq!(fabric.distance(first, third.id), Some(1));
}

#[test]
fn links_carry_bandwidth_and_health() {
    let mut record = drawing::parse("block b0: n1 x1 H100").unwrap();
    record.nodes[0].nic_model = "NVIDIA ConnectX-7".to_owned();
    let mut fabric = Fabric::from_record(&record).unwrap();
    let node = fabric.node(0);
    let leaf = fabric.neighbours(node, |kind| kind == LinkKind::Rail(0))[0];
    assert_eq!(fabric.set_health(node, leaf, Health::Degraded), 1);
    let mut links: Vec<String> =
        fabric.graph().edge_weights().map(|link| format!("{link:?}")).collect();
    links.sort();
    expect![[r#"
        Link { kind: Contains, bandwidth_gbps: None, health: Up, cables: 1, nic: None }
        Link { kind: Contains, bandwidth_gbps: None, health: Up, cables: 1, nic: None }
        Link { kind: NvLink, bandwidth_gbps: Some(3600), health: Up, cables: 1, nic: None }
        Link { kind: Rail(0), bandwidth_gbps: Some(400), health: Degraded, cables: 1, nic: Some(0) }
        Link { kind: Uplink, bandwidth_gbps: None, health: Up, cables: 1, nic: None }"#]]
    .assert_eq(&links.join("\n"));
}

#[test]
fn one_line_a_rack() {
    let record = drawing::parse(
        "block b0: n[1-4] x4
         block b1: m[1-2] x2 + bare x1
         rack rack1: n[1-2]
         rack r2: n[3-4],m[1-2]",
    )
    .unwrap();
    let cell =
        |node: usize, gpu: u16| if (node + usize::from(gpu)).is_multiple_of(3) { '#' } else { '.' };
    expect![[r#"
        rack1  #..# ..#.
        r2     .#.. #..# .. .#
        lab    #
    "#]]
    .assert_eq(&draw(&record, cell));
}

#[test]
fn drawings_that_cannot_be_read_name_the_line() {
    let error = |text: &str| drawing::parse(text).unwrap_err().to_string();
    expect![[r#"
        line 1: cannot read "block b0 node1 x8"; write block NAME: node[1-8] x8
        line 2: cannot read "node1"; write nodes, GPUs and perhaps a model: node[1-8] x8 H100
        line 1: cannot read "node1 x8 H100 H200"; write nodes, GPUs and perhaps a model: node[1-8] x8 H100
        line 1: a bracket without its partner in "node[1-"; write names like node[1-8,12]
        line 2: unknown node "node2"; draw its block first
        nodes[1].name: node "node1" is named twice; keep one
        nodes[0]: the fabric has no nodes; name at least one node"#]].assert_eq(
        &[
            error("block b0 node1 x8"),
            error("\nblock b0: node1"),
            error("block b0: node1 x8 H100 H200"),
            error("block b0: node[1- x8"),
            error("block b0: node1 x8\nrack r1: node2"),
            error("block b0: node1 x8\nblock b1: node1 x8"),
            error("# nothing"),
        ]
        .join("\n"),
    );
}

#[test]
fn levels_are_words() {
    for level in Level::ALL {
        assert_eq!(level.to_string().parse(), Ok(level));
        assert_eq!(serde_json::to_string(&level).unwrap(), format!("\"{level}\""));
    }
    assert_eq!("nvlink-domain".parse(), Ok(Level::Nvlink));
    let error = "rail".parse::<Level>().unwrap_err().to_string();
    assert_eq!(error, "\"rail\" is not a level; write site, pod, block, nvlink or node");
    assert!(Level::Site < Level::Node);
}
