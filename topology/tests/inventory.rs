//! Inventory files in, records or one-line errors out.
#![expect(clippy::unwrap_used, reason = "helpers of tests, not marked #[test] themselves")]

use expect_test::{Expect, expect};
use rowen_topology::*;

fn yaml(text: &str) -> Inventory {
    serde_saphyr::from_str(text).unwrap()
}

const DEMO: &str = include_str!("../../examples/fabric.yaml");

#[test]
fn the_demo_fabric() {
    let record = yaml(DEMO).expand().unwrap();
    let index = FlatIndex::build(&record).unwrap();
    let outline = outline(&index);
    let blocks: String =
        outline.lines().filter(|line| !line.contains("node ")).map(|l| format!("{l}\n")).collect();
    expect![[r#"
        site lab: 128 free of 128
          pod spine[1-4]: 128 free of 128
            block leaf-a[0-7]: 64 free of 64
            block leaf-b[0-7]: 64 free of 64
        rack1  ........ ........ ........ ........
        rack2  ........ ........ ........ ........
        rack3  ........ ........ ........ ........
        rack4  ........ ........ ........ ........
    "#]]
    .assert_eq(&format!("{blocks}{}", draw(&record, |_, _| '.')));
    assert_eq!(Fabric::from_record(&record).unwrap().irregularities(), []);
    let blocks: Vec<u32> =
        index.domains(Level::Block).iter().map(|b| b.nodes.end - b.nodes.start).collect();
    assert_eq!(blocks, [8, 8]);
    assert_eq!(index.domains(Level::Nvlink).len(), 16);
    let feeds = (0..16).map(|at| index.failure_domain(index.pos_of_record(at), "power").unwrap());
    assert_eq!(
        feeds.collect::<Vec<_>>().join(" "),
        format!(
            "{0} {0} {0} {0} {1} {1} {1} {1} {0} {0} {0} {0} {1} {1} {1} {1}",
            "feed-1", "feed-2"
        )
    );
}

#[test]
fn yaml_toml_and_json_read_alike() {
    let inventory = yaml(DEMO);
    let toml_text = toml::to_string(&inventory).unwrap();
    assert_eq!(toml::from_str::<Inventory>(&toml_text).unwrap(), inventory);
    let json_text = serde_json::to_string(&inventory).unwrap();
    assert_eq!(serde_json::from_str::<Inventory>(&json_text).unwrap(), inventory);
    let schema = schemars::schema_for!(Inventory).to_value();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$defs"]["NodeGroup"]["additionalProperties"], false);
}

#[test]
fn a_record_survives_the_wire() {
    let record = yaml(DEMO).expand().unwrap();
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<FabricRecord>(&json).unwrap(), record);
}

#[test]
fn topograph_labels_stand_for_fields_left_out() {
    let record = yaml(
        r#"
nodes:
  - names: i[1-2]
    gpu: { model: GB200, count: 4, memory_mib: 189000 }
    cpus: 144
    memory_mib: 980000
    labels:
      network.topology.nvidia.com/accelerator: 3fb1e0aa.7
      network.topology.nvidia.com/leaf: s1
      network.topology.nvidia.com/spine: s2
      network.topology.nvidia.com/core: s3
  - names: i3
    nvlink_domain: mine
    gpu: { model: GB200, count: 4, memory_mib: 189000 }
    cpus: 144
    memory_mib: 980000
    labels:
      accelerator.topograph.run/domain: theirs
      fabric.topograph.run/tier-0: s1b
      fabric.topograph.run/tier-1: s2
      fabric.topograph.run/tier-2: s3
"#,
    )
    .expand()
    .unwrap();
    expect![[r#"
        site s3: 12 free of 12
          pod s2: 12 free of 12
            block s1: 8 free of 8
              nvlink 3fb1e0aa.7: 8 free of 8
                node i1: 4 free of 4
                node i2: 4 free of 4
            block s1b: 4 free of 4
              node i3: 4 free of 4
    "#]]
    .assert_eq(&outline(&FlatIndex::build(&record).unwrap()));
    assert_eq!(record.nodes[2].nvlink_domain.as_deref(), Some("mine"));
    assert_eq!(Fabric::from_record(&record).unwrap().irregularities(), []);
}

#[test]
fn ranges_share_the_nodes_out() {
    let mut inventory = small();
    inventory.nodes[0].rack = Some("r[1-2]".to_owned());
    inventory.nodes[0].addr = Some("10.0.0.[1-4]:7401".to_owned());
    let record = inventory.expand().unwrap();
    let placed: Vec<String> = record
        .nodes
        .iter()
        .map(|node| format!("{} {} {}", node.name, node.rack, node.addr.as_deref().unwrap()))
        .collect();
    expect![[r#"
        n1 r1 10.0.0.1:7401
        n2 r1 10.0.0.2:7401
        n3 r2 10.0.0.3:7401
        n4 r2 10.0.0.4:7401"#]]
    .assert_eq(&placed.join("\n"));
}

/// Four nodes on two leafs and one spine.
fn small() -> Inventory {
    yaml(
        "
spines: s1
leafs: [{ names: 'l[1-2]', spines: s1 }]
nodes:
  - names: n[1-4]
    leafs: l[1-2]
    gpu: { model: H100, count: 8, memory_mib: 80000 }
    cpus: 64
    memory_mib: 1000000
",
    )
}

/// What a change of the small inventory is refused with.
fn refused(change: impl Fn(&mut Inventory), want: Expect) {
    let mut inventory = small();
    change(&mut inventory);
    let error = inventory.expand().unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1);
    want.assert_eq(&error);
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn malformed_inventories() {
    refused(|i| i.nodes.clear(), expect!["nodes: the fabric has no nodes; name at least one node"]);
    refused(
        |i| i.nodes[0].names = String::new(),
        expect![[r#"nodes[0].names: an empty name in ""; write names like node[1-8,12]"#]],
    );
    refused(
        |i| i.nodes[0].names = "n[1-".to_owned(),
        expect![[
            r#"nodes[0].names: a bracket without its partner in "n[1-"; write names like node[1-8,12]"#
        ]],
    );
    refused(
        |i| i.nodes[0].names = "n[4-1]".to_owned(),
        expect![[
            r#"nodes[0].names: the range "4-1" runs backwards; write names like node[1-8,12]"#
        ]],
    );
    refused(
        |i| i.nodes[0].names = "n[1-70000]".to_owned(),
        expect![
            "nodes[0].names: the list stands for more than 65536 names; write names like node[1-8,12]"
        ],
    );
    refused(
        |i| i.nodes[0].names = "n1,n1".to_owned(),
        expect![[r#"nodes[0].names: node "n1" is named twice; keep one"#]],
    );
    refused(
        |i| i.nodes[0].names = "my node".to_owned(),
        expect![[
            r#"nodes[0].names: the character ' ' in the name "my node"; use letters, digits and - _ . / : @"#
        ]],
    );
    refused(
        |i| i.nodes[0].names = "x".repeat(129),
        expect!["nodes[0].names: 129 bytes; shorten it to 128"],
    );
    refused(
        |i| i.nodes.push(i.nodes[0].clone()),
        expect![[r#"nodes[1].names: node "n1" is named twice; keep one"#]],
    );
    refused(
        |i| i.nodes[0].leafs = some("l[1-3]"),
        expect![[r#"nodes[0].leafs: unknown leaf "l3"; add it to leafs or correct the name"#]],
    );
    refused(
        |i| i.nodes[0].leafs = some("l1,l1"),
        expect![[r#"nodes[0].leafs: leaf "l1" is named twice; keep one"#]],
    );
    refused(
        |i| i.nodes[0].leafs = some("l[1-65]"),
        expect!["nodes[0].leafs: 65 names up to here; at most 64 are possible"],
    );
    refused(
        |i| i.nodes[0].gpu.count = 0,
        expect!["nodes[0].gpu.count: 0 GPUs in a node; write 1 to 64"],
    );
    refused(
        |i| i.nodes[0].gpu.count = 65,
        expect!["nodes[0].gpu.count: 65 GPUs in a node; write 1 to 64"],
    );
    refused(
        |i| i.nodes[0].gpu.model = String::new(),
        expect!["nodes[0].gpu.model: no GPU model; name the GPU model, for example H100"],
    );
    refused(
        |i| i.nodes[0].gpu.memory_mib = 0,
        expect!["nodes[0].gpu.memory_mib: 0 MiB of memory; write 1 to 1073741824"],
    );
    refused(
        |i| i.nodes[0].nic = some("a\nb"),
        expect![[r#"nodes[0].nic: the control character '\n'; leave it out"#]],
    );
    refused(|i| i.nodes[0].cpus = 0, expect!["nodes[0].cpus: 0 CPUs in a node; write 1 to 65536"]);
    refused(
        |i| i.nodes[0].memory_mib = u64::MAX,
        expect!["nodes[0].memory_mib: 18446744073709551615 MiB of memory; write 1 to 1073741824"],
    );
    refused(
        |i| i.nodes[0].rack = some("r[1-3]"),
        expect![
            "nodes[0].rack: 4 nodes cannot be shared out evenly over 3; name as many as divide the nodes, or split the group"
        ],
    );
    refused(
        |i| i.nodes[0].nvlink_domain = some("d[1-8]"),
        expect![
            "nodes[0].nvlink_domain: 4 nodes cannot be shared out evenly over 8; name as many as divide the nodes, or split the group"
        ],
    );
    refused(
        |i| i.nodes[0].addr = some("10.0.0.[1-2]"),
        expect![
            "nodes[0].addr: 2 addresses for 4 nodes; write one a node, for example 10.0.0.[1-8]"
        ],
    );
    refused(|i| i.site = some(""), expect!["site: an empty name; write a name"]);
    refused(
        |i| _ = i.nodes[0].failure_domains.insert("rack".into(), "r1".into()),
        expect![
            "nodes[0].failure_domains.rack: rack is a failure domain by itself; use the node's own field rack"
        ],
    );
    refused(
        |i| _ = i.nodes[0].failure_domains.insert("power".into(), "f[1-3]".into()),
        expect![
            "nodes[0].failure_domains.power: 4 nodes cannot be shared out evenly over 3; name as many as divide the nodes, or split the group"
        ],
    );
    refused(
        |i| _ = i.nodes[0].labels.insert("key".into(), "v".repeat(318)),
        expect!["nodes[0].labels.key: 318 bytes; shorten it to 317"],
    );
    refused(
        |i| {
            i.nodes[0].leafs = None;
            let key = "network.topology.nvidia.com/leaf".to_owned();
            i.nodes[0].labels.insert(key, "two words".to_owned());
        },
        expect![[
            r#"nodes[0].labels.network.topology.nvidia.com/leaf: the character ' ' in the name "two words"; use letters, digits and - _ . / : @"#
        ]],
    );
    refused(
        |i| i.spines = some("s1,s1"),
        expect![[r#"spines: spine "s1" is named twice; keep one"#]],
    );
    refused(
        |i| i.leafs[0].spines = some("s[1-2]"),
        expect![[r#"leafs[0].spines: unknown spine "s2"; add it to spines or correct the name"#]],
    );
    refused(
        |i| i.leafs[0].rail = Some(64),
        expect!["leafs[0].rail: rail 64 is out of range; write 0 to 63"],
    );
    refused(
        |i| i.leafs[0].names = "l[1-2],l2".to_owned(),
        expect![[r#"leafs[0].names: leaf "l2" is named twice; keep one"#]],
    );
    refused(
        |i| i.leafs[0].names = "l[1-20000]".to_owned(),
        expect!["leafs[0].names: 20000 names up to here; at most 16384 are possible"],
    );
}

#[test]
fn malformed_records_from_the_wire() {
    let refused = |change: fn(&mut FabricRecord), want: Expect| {
        let mut record = small().expand().unwrap();
        change(&mut record);
        let error = record.check_limits().unwrap_err();
        assert_eq!(Fabric::from_record(&record).unwrap_err(), error);
        assert_eq!(FlatIndex::build(&record).unwrap_err(), error);
        want.assert_eq(&error.to_string());
    };
    refused(
        |record| record.nodes.clear(),
        expect!["nodes[0]: the fabric has no nodes; name at least one node"],
    );
    refused(
        |record| record.nodes[3].gpu_count = 0,
        expect!["nodes[3].gpu_count: 0 GPUs in a node; write 1 to 64"],
    );
    refused(
        |record| record.nodes[3].leafs.push("l9".to_owned()),
        expect![[r#"nodes[3].leafs: unknown leaf "l9"; add it to leafs or correct the name"#]],
    );
    refused(
        |record| record.nodes[3].name = "n1".to_owned(),
        expect![[r#"nodes[3].name: node "n1" is named twice; keep one"#]],
    );
    refused(
        |record| record.leafs[1].spines.push("s9".to_owned()),
        expect![[r#"leafs[1].spines: unknown spine "s9"; add it to spines or correct the name"#]],
    );
    refused(
        |record| _ = record.nodes[3].labels.insert("a\nb".to_owned(), String::new()),
        expect![[r#"nodes[3].labels: the control character '\n'; leave it out"#]],
    );
    refused(
        |record| record.spines.push("a,b".to_owned()),
        expect![[
            r#"spines[1]: the character ',' in the name "a,b"; use letters, digits and - _ . / : @"#
        ]],
    );
}

#[test]
fn unknown_keys_are_refused() {
    let unknown = |text: &str| serde_json::from_str::<Inventory>(text).unwrap_err().to_string();
    assert!(unknown(r#"{"nodes": [], "rails": 8}"#).contains("unknown field `rails`"));
    let node = r#"{"nodes": [{"names": "n1", "gpus": 8}]}"#;
    assert!(unknown(node).contains("unknown field `gpus`"));
}
