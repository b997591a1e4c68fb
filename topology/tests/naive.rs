//! The flat index held against a naive walk of the petgraph graph, on random irregular fabrics.
#![expect(clippy::unwrap_used, reason = "helpers of tests, not marked #[test] themselves")]

use std::collections::{BTreeMap, BTreeSet};

use petgraph::visit::EdgeRef;
use proptest::prelude::*;
use rowen_topology::*;

/// A node's domains as the graph tells them: site, pod, block, NVLink domain, node. Each key holds
/// its parent's, as the definition of nested domains has it.
type Keys = [String; 5];

fn keys(fabric: &Fabric, record_index: usize) -> Keys {
    let graph = fabric.graph();
    let node = graph
        .node_indices()
        .find(|at| match graph[*at].kind {
            VertexKind::Node { record, .. } => record as usize == record_index,
            _ => false,
        })
        .unwrap();
    let over = |from: petgraph::stable_graph::NodeIndex, wanted: fn(LinkKind) -> bool| {
        let links = graph.edges(from).filter(move |edge| wanted(edge.weight().kind));
        links.map(|edge| edge.target()).collect::<BTreeSet<_>>()
    };
    let contains = |kind| kind == LinkKind::Contains;
    let named = |at: &petgraph::stable_graph::NodeIndex| graph[*at].kind.name().unwrap().to_owned();

    let places = over(node, contains);
    let rack = places.iter().find(|at| matches!(graph[**at].kind, VertexKind::Rack(_)));
    let above = rack.map_or(places.clone(), |rack| over(*rack, contains));
    let site = above.iter().find(|at| matches!(graph[**at].kind, VertexKind::Site(_))).unwrap();
    let gpu = places.iter().find(|at| matches!(graph[**at].kind, VertexKind::Gpu(_))).unwrap();
    let domain = over(*gpu, |kind| kind == LinkKind::NvLink);
    assert_eq!(domain.len(), 1);
    let leafs = over(node, |kind| matches!(kind, LinkKind::Rail(_)));
    let spines: BTreeSet<_> =
        leafs.iter().flat_map(|leaf| over(*leaf, |kind| kind == LinkKind::Uplink)).collect();

    let site = named(site);
    let pod = format!("{site} {:?}", spines.iter().map(named).collect::<Vec<_>>());
    let block = match leafs.is_empty() {
        true => format!("{pod} rack {:?}", rack.map(named)),
        false => format!("{pod} leafs {:?}", leafs.iter().map(named).collect::<Vec<_>>()),
    };
    let nvlink = format!("{block} {domain:?}");
    let node = format!("{nvlink} {record_index}");
    [site, pod, block, nvlink, node]
}

/// What the test believes of one node.
#[derive(Clone, Copy)]
struct Belief {
    free: u16,
    reclaimable: u16,
    in_service: bool,
}

fn check(record: &FabricRecord, steps: &[(usize, bool, u16, u16)]) {
    let fabric = Fabric::from_record(record).unwrap();
    let mut index = FlatIndex::build(record).unwrap();
    let n = record.nodes.len();
    let keys: Vec<Keys> = (0..n).map(|at| keys(&fabric, at)).collect();
    check_shape(record, &index, &keys);

    let full = |at: usize| record.nodes[at].gpu_count;
    let mut beliefs: Vec<Belief> =
        (0..n).map(|at| Belief { free: full(at), reclaimable: 0, in_service: true }).collect();
    check_counts(record, &index, &keys, &beliefs);
    for &(at, serve, free, reclaimable) in steps {
        let at = at % n;
        let free = free % (full(at) + 1);
        let reclaimable = reclaimable % (full(at) - free + 1);
        let pos = index.pos_of_record(at);
        if serve != index.in_service(pos) {
            index.set_in_service(pos, serve);
        }
        index.set_node(pos, free, reclaimable);
        beliefs[at] = match serve {
            true => Belief { free, reclaimable, in_service: true },
            false => Belief { free: 0, reclaimable: 0, in_service: false },
        };
    }
    check_counts(record, &index, &keys, &beliefs);
}

/// Same domain exactly where the keys agree; every domain one range; children tile their parent.
fn check_shape(record: &FabricRecord, index: &FlatIndex, keys: &[Keys]) {
    assert_eq!(index.node_count() as usize, keys.len());
    for pos in (0..index.node_count()).map(NodePos) {
        assert_eq!(index.pos_of_record(index.node_record(pos)), pos);
        let node = &record.nodes[index.node_record(pos)];
        assert_eq!(index.node_name(pos), node.name);
        assert_eq!(index.model_name(index.model(pos)), node.gpu_model);
        assert_eq!(index.model_id(&node.gpu_model), Some(index.model(pos)));
        assert_eq!(index.gpu_count(pos), node.gpu_count);
        assert_eq!(index.failure_domain(pos, "site"), Some(node.site.as_str()));
        let power = node.failure_domains.get("power").map(String::as_str);
        assert_eq!(index.failure_domain(pos, "power"), power);
        assert_eq!(index.failure_domain(pos, "rack").is_some(), !node.rack.is_empty());
    }
    for level in Level::ALL {
        let mut key_of: BTreeMap<u32, &str> = BTreeMap::new();
        let mut next = 0;
        for (ordinal, domain) in index.domains(level).iter().enumerate() {
            let id = DomainId { level, ordinal: ordinal as u32 };
            assert_eq!(domain.nodes.start, next, "{level} domains tile the nodes");
            next = domain.nodes.end;
            for pos in domain.nodes.clone().map(NodePos) {
                assert_eq!(index.domain_of(pos, level), id);
                let key = &keys[index.node_record(pos)][level as usize];
                assert_eq!(key_of.entry(id.ordinal).or_insert(key), key);
            }
            if let Some(coarser) = level.coarser() {
                let parent = index.domain_of(NodePos(domain.nodes.start), coarser);
                assert_eq!(domain.parent, parent.ordinal);
                assert!(index.children(parent).contains(&id.ordinal));
            }
            match level.finer() {
                Some(finer) => {
                    let parts = &index.domains(finer)[index.children(id).start as usize..];
                    let parts = &parts[..index.children(id).len()];
                    assert_eq!(parts.first().unwrap().nodes.start, domain.nodes.start);
                    assert_eq!(parts.last().unwrap().nodes.end, domain.nodes.end);
                }
                None => assert_eq!(index.children(id).len(), 0),
            }
        }
        assert_eq!(next, index.node_count());
        let distinct: BTreeSet<&str> = key_of.values().copied().collect();
        assert_eq!(distinct.len(), key_of.len(), "no two {level} domains share a key");
    }
}

fn check_counts(record: &FabricRecord, index: &FlatIndex, keys: &[Keys], beliefs: &[Belief]) {
    let models: Vec<Option<ModelId>> =
        (0..index.model_count()).map(|id| Some(ModelId(id))).chain([None]).collect();
    for level in Level::ALL {
        for (ordinal, domain) in index.domains(level).iter().enumerate() {
            let key = &keys[index.node_record(NodePos(domain.nodes.start))][level as usize];
            for &model in &models {
                let mut want = Counts::default();
                for (at, node) in record.nodes.iter().enumerate() {
                    let counted = model.is_none_or(|m| index.model_name(m) == node.gpu_model);
                    if counted && keys[at][level as usize] == *key {
                        want.free += u32::from(beliefs[at].free);
                        want.reclaimable += u32::from(beliefs[at].reclaimable);
                        want.capacity +=
                            if beliefs[at].in_service { u32::from(node.gpu_count) } else { 0 };
                    }
                }
                let id = DomainId { level, ordinal: ordinal as u32 };
                assert_eq!(index.counts(id, model), want, "{level} {key} {model:?}");
            }
        }
    }
    for (at, belief) in beliefs.iter().enumerate() {
        let pos = index.pos_of_record(at);
        assert_eq!(index.free(pos), belief.free);
        assert_eq!(index.reclaimable(pos), belief.reclaimable);
        assert_eq!(index.in_service(pos), belief.in_service);
    }
}

/// Fabrics that are mostly irregular: leafs with any spines, nodes with any leafs, NVLink domains
/// that reach anywhere.
fn any_record() -> impl Strategy<Value = FabricRecord> {
    let leaf = prop::collection::btree_set(0..3_u8, 0..3);
    let node = (
        (0..2_u8, 0..4_u8, prop::collection::btree_set(0..4_u8, 0..3)),
        (prop::option::of(0..3_u8), 0..3_u8, 1..9_u16, prop::option::of(0..2_u8)),
    );
    let leafs = prop::collection::vec(leaf, 4);
    (leafs, prop::collection::vec(node, 1..24)).prop_map(|(leafs, nodes)| {
        let mut record = FabricRecord {
            spines: (0..3).map(|spine| format!("s{spine}")).collect(),
            ..FabricRecord::default()
        };
        for (at, spines) in leafs.iter().enumerate() {
            let spines = spines.iter().map(|spine| format!("s{spine}")).collect();
            record.leafs.push(LeafRecord { name: format!("l{at}"), rail: None, spines });
        }
        for (at, ((site, rack, leafs), (domain, model, gpus, power))) in
            nodes.into_iter().enumerate()
        {
            let drawn = drawing::parse(&format!("loose: n{at} x{gpus} M{model}")).unwrap();
            let mut node = drawn.nodes.into_iter().next().unwrap();
            node.site = format!("site{site}");
            node.rack = if rack == 0 { String::new() } else { format!("r{rack}") };
            node.leafs = leafs.iter().map(|leaf| format!("l{leaf}")).collect();
            node.nvlink_domain = domain.map(|domain| format!("d{domain}"));
            node.failure_domains =
                power.map(|p| ("power".to_owned(), format!("f{p}"))).into_iter().collect();
            record.nodes.push(node);
        }
        record
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn index_equals_the_naive_walk(
        record in any_record(),
        steps in prop::collection::vec((0..64_usize, prop::bool::weighted(0.8), 0..9_u16, 0..9_u16), 0..60),
    ) {
        check(&record, &steps);
    }

    #[test]
    fn irregularities_are_one_line_each(record in any_record()) {
        for found in Fabric::from_record(&record).unwrap().irregularities() {
            prop_assert!(!found.to_string().contains('\n'));
        }
    }
}

#[test]
fn a_clone_is_its_own() {
    let record = drawing::parse("block b0: node[1-2] x8").unwrap();
    let before = FlatIndex::build(&record).unwrap();
    let mut after = before.clone();
    after.set_node(NodePos(0), 1, 2);
    assert_eq!(before.free(NodePos(0)), 8);
    assert_ne!(before, after);
    after.set_node(NodePos(0), 8, 0);
    assert_eq!(before, after);
}

#[test]
#[should_panic(expected = "has only 8 GPUs")]
fn more_than_there_are_is_refused() {
    let record = drawing::parse("block b0: node1 x8").unwrap();
    FlatIndex::build(&record).unwrap().set_node(NodePos(0), 8, 1);
}
