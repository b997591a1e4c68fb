//! Groups, spread, locality wait, nodes and sizes: drawn cases, and random ones against an obvious
//! validator and an exhaustive search.

use expect_test::{Expect, expect};
use proptest::prelude::*;
use rowen_placement::{explain, plan};
use rowen_state::{
    Cluster, Command, Decision, Group, Job, JobId, JobSpec, JobState, LabelRule, LabelTest, Node,
    NodeFilter, Owner, Place, Resources, Shape, Spread,
};
use rowen_topology::{Level, NodePos};

use crate::world::{World, filler, gang, lines};

const TWO_BLOCKS: &str = "
pod p
block a: a[1-4] x4
block b: b[1-4] x4
nvlink va1: a[1-2]
nvlink va2: a[3-4]
nvlink vb1: b[1-2]
nvlink vb2: b[3-4]
label tier=gold: a[1-4]
label tier=silver: b[1-3]
label canary=yes: b4
";

fn group(workers: u32, level: Level) -> Group {
    Group { workers, level, preferred: false }
}

fn shaped(workers: u32, gpus: u32, shape: Shape) -> JobSpec {
    let spec = JobSpec { shape, ..gang(workers, gpus, None) };
    spec.validate().unwrap();
    spec
}

fn check(world: &World, expect: &Expect) {
    expect.assert_eq(&world.plan());
}

#[test]
fn groups_nest() {
    let mut world = World::new(TWO_BLOCKS);
    let shape =
        Shape { groups: vec![group(4, Level::Block), group(2, Level::Nvlink)], ..Shape::default() };
    world.submit(shaped(8, 4, shape));
    check(
        &world,
        &expect![[r#"
        start 1 on a1:{0, 1, 2, 3} a2:{0, 1, 2, 3} a3:{0, 1, 2, 3} a4:{0, 1, 2, 3} b1:{0, 1, 2, 3} b2:{0, 1, 2, 3} b3:{0, 1, 2, 3} b4:{0, 1, 2, 3} (free GPUs in pod p-spine, the tightest fit: room for 0 more such workers is left there)
    "#]],
    );
}

/// A hole in each NVLink domain but one: pairs no longer fit where single workers would.
#[test]
fn what_is_left_beside_whole_groups_is_named() {
    let mut world = World::new(TWO_BLOCKS);
    for node in ["a1", "a3", "b1"] {
        let command = Command::CordonNode { node: world.node(node), reason: "fan".into() };
        world.apply(command);
    }
    let shape = Shape { groups: vec![group(2, Level::Nvlink)], ..Shape::default() };
    let job = world.submit(shaped(4, 4, shape));
    check(
        &world,
        &expect![[r#"
        wait 1: needs 4 × 4 GPUs inside one site, in groups of 2 inside one NVLink domain; the nearest, site lab, can give 8 of 16 GPUs: down, silent or out of service: 12, left over beside whole groups: 12
    "#]],
    );
    world.settle();
    let why = explain(&world.cluster, job);
    expect![[r#"
        Explanation {
            summary: "job 1 waits: needs 4 × 4 GPUs inside one site, in groups of 2 inside one NVLink domain; the nearest, site lab, can give 8 of 16 GPUs: down, silent or out of service: 12, left over beside whole groups: 12",
            binding_constraint: "GPUs that are down or out of service",
            queue_position: 1,
            queue_length: 1,
            levels: [
                LevelReason {
                    level: Site,
                    considered: 1,
                    could_if_empty: 1,
                    nearest: "lab",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Pod,
                    considered: 1,
                    could_if_empty: 1,
                    nearest: "p-spine",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Block,
                    considered: 2,
                    could_if_empty: 2,
                    nearest: "b-leaf",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Nvlink,
                    considered: 4,
                    could_if_empty: 0,
                    nearest: "vb2",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Node,
                    considered: 8,
                    could_if_empty: 0,
                    nearest: "a2",
                    nearest_lacks_gpus: 12,
                },
            ],
            cheapest_change: "2 fewer workers",
            start_estimate_ms: None,
        }
    "#]].assert_eq(&format!("{why:#?}\n"));
}

#[test]
fn balanced_groups_are_shared_out_evenly() {
    let mut world = World::new("block a: a[1-4] x1\nblock b: b[1-4] x1\nblock c: c[1-4] x1");
    let groups = vec![group(1, Level::Node)];
    world.submit(shaped(6, 1, Shape { groups: groups.clone(), ..Shape::default() }));
    check(
        &world,
        &expect![[r#"
        start 1 on a1:{0} a2:{0} a3:{0} a4:{0} b1:{0} b2:{0} (free GPUs in pod pod-spine, the tightest fit: room for 6 more such workers is left there)
    "#]],
    );
    let job = world.submit(shaped(6, 1, Shape { groups, balanced: true, ..Shape::default() }));
    world.apply(Command::CancelJob(JobId(job.0 - 1)));
    check(
        &world,
        &expect![[r#"
        start 2 on a1:{0} a2:{0} a3:{0} b1:{0} b2:{0} b3:{0} (free GPUs in pod pod-spine, the tightest fit: room for 6 more such workers is left there)
    "#]],
    );
}

#[test]
fn a_preferred_level_is_waited_for() {
    let mut world = World::new(TWO_BLOCKS);
    for node in ["a1", "b1", "b2"] {
        let command = Command::CordonNode { node: world.node(node), reason: "fan".into() };
        world.apply(command);
    }
    let shape = Shape { locality_wait_ms: 60_000, ..Shape::default() };
    let spec = JobSpec { preferred: Some(Level::Block), shape, ..gang(4, 4, Some(Level::Pod)) };
    let job = world.submit(spec);
    world.settle();
    let why = explain(&world.cluster, job);
    let estimate = why.start_estimate_ms.map(|at_ms| at_ms - world.now_ms);
    expect![[r#"
        job 1 waits: needs 4 × 4 GPUs inside one block while its locality wait lasts; the nearest, block a-leaf, can give 12 of 16 GPUs: down, silent or out of service: 4
        its locality wait
        pod instead of block, or 1 fewer worker
        Some(60000)
    "#]].assert_eq(&format!(
        "{}\n{}\n{}\n{estimate:?}\n",
        why.summary, why.binding_constraint, why.cheapest_change
    ));
    world.now_ms += 59_999;
    world.apply(Command::Tick);
    check(&world, &expect![[r#""#]]);
    world.now_ms += 1;
    world.apply(Command::Tick);
    check(
        &world,
        &expect![[r#"
        start 1 on a2:{0, 1, 2, 3} a3:{0, 1, 2, 3} a4:{0, 1, 2, 3} b3:{0, 1, 2, 3} (free GPUs in pod p-spine, the tightest fit: room for 1 more such workers is left there)
    "#]],
    );
    world.settle();
}

#[test]
fn an_exclusive_gang_is_alone() {
    let mut world = World::new("block a: n[1-3] x4");
    world.deploy(filler("serve", 1, 3));
    world.settle();
    world.agents();
    let nodes = NodeFilter { exclusive: true, ..NodeFilter::default() };
    let shape = Shape { nodes, ..Shape::default() };
    world.submit(shaped(2, 2, shape.clone()));
    check(
        &world,
        &expect![[r#"
        start 1 on n2:{0, 1} n2:{2, 3} (free GPUs in node n2, the tightest fit: room for 0 more such workers is left there)
    "#]],
    );
    world.settle();
    world.submit(gang(2, 2, None));
    let last = world.submit(shaped(1, 1, shape));
    world.settle();
    expect![[r#"
        n1  SSS.
        n2  1111
        n3  2222
    "#]]
    .assert_eq(&world.picture());
    expect!["job 3 has GPUs held for it: node n1: 3 fillers leave, within 5000 ms"]
        .assert_eq(&explain(&world.cluster, last).summary);
}

#[test]
fn nodes_are_chosen_by_label_and_model() {
    let mut world = World::new(TWO_BLOCKS);
    let rule = |key: &str, test| LabelRule { key: key.into(), test };
    let labels = vec![
        rule("tier", LabelTest::NotIn(vec!["gold".into()])),
        rule("canary", LabelTest::Missing),
    ];
    let gpu_models = vec!["H100".into(), "H200".into()];
    let nodes = NodeFilter { labels, gpu_models, ..NodeFilter::default() };
    world.submit(shaped(3, 4, Shape { nodes: nodes.clone(), ..Shape::default() }));
    let nodes = NodeFilter { gpu_models: vec!["B200".into()], ..nodes };
    world.submit(shaped(1, 4, Shape { nodes, ..Shape::default() }));
    check(
        &world,
        &expect![[r#"
        start 1 on b1:{0, 1, 2, 3} b2:{0, 1, 2, 3} b3:{0, 1, 2, 3} (free GPUs in block b-leaf, the tightest fit: room for 0 more such workers is left there)
        wait 2: can never start: no node will do for 4 B200 GPUs without tier gold and without a label canary; the models are H100
    "#]],
    );
}

#[test]
fn a_gang_that_may_be_smaller_starts_with_what_there_is() {
    let mut world = World::new(TWO_BLOCKS);
    world.submit(gang(3, 4, None));
    world.settle();
    let shape = Shape { groups: vec![group(2, Level::Nvlink)], min_workers: 2, ..Shape::default() };
    world.submit(shaped(8, 4, shape));
    check(
        &world,
        &expect![[r#"
        start 2 on b1:{0, 1, 2, 3} b2:{0, 1, 2, 3} b3:{0, 1, 2, 3} b4:{0, 1, 2, 3} (free GPUs in block b-leaf, the tightest fit: room for 0 more such workers is left there)
    "#]],
    );
    world.settle();
}

/// What apply must refuse, whoever proposes it.
#[test]
fn apply_checks_every_shape_again() {
    let mut world = World::new(TWO_BLOCKS);
    let place = |world: &World, name: &str, gpus: u64| Place {
        node: world.node(name),
        gpus: rowen_state::GpuMask(gpus),
    };
    let mut refuse = |spec: JobSpec, on: &[(&str, u64)]| {
        let job = world.submit(spec);
        let places = on.iter().map(|(name, gpus)| place(&world, name, *gpus)).collect();
        let start = Decision::Start { job, places, why: String::new() };
        let plan = rowen_state::Plan { based_on: world.cluster.applied(), decisions: vec![start] };
        let reply = world.apply(Command::CommitPlan(plan));
        assert_eq!(reply, rowen_state::Reply::Planned { accepted: 0, rejected: 1 });
        world.apply(Command::CancelJob(job));
    };
    let pairs = Shape { groups: vec![group(2, Level::Nvlink)], ..Shape::default() };
    refuse(shaped(2, 4, pairs), &[("a2", 15), ("a3", 15)]);
    let spread = vec![Spread { workers: 1, level: Level::Node }];
    refuse(shaped(2, 1, Shape { spread, ..Shape::default() }), &[("a1", 1), ("a1", 2)]);
    let gpu_models = vec!["H200".into()];
    let nodes = NodeFilter { gpu_models, ..NodeFilter::default() };
    refuse(shaped(1, 1, Shape { nodes, ..Shape::default() }), &[("a1", 1)]);
    let labels = vec![LabelRule { key: "canary".into(), test: LabelTest::Missing }];
    let nodes = NodeFilter { labels, ..NodeFilter::default() };
    refuse(shaped(1, 1, Shape { nodes, ..Shape::default() }), &[("b4", 1)]);
    let smaller = Shape { min_workers: 2, ..Shape::default() };
    refuse(shaped(3, 1, smaller), &[("a1", 1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn shapes_hold_in_random_worlds(
        blocks in prop::collection::vec((1u32..=3, 1u32..=4, any::<u8>()), 1..=3),
        crowd in prop::collection::vec((0u8..3, any::<u32>(), any::<u32>()), 0..6),
        job in (any::<u32>(), any::<u32>(), any::<u32>()),
    ) {
        let mut world = World::new(&drawing(&blocks));
        for (what, a, b) in crowd {
            crowd_in(&mut world, what, a, b);
        }
        let Some(spec) = some_shaped(job) else { return Ok(()) };
        let Ok(rowen_state::Reply::Job(id)) = world.try_apply(Command::SubmitJob(spec)) else {
            panic!("a valid job");
        };
        served(&mut world, id);
    }
}

/// Blocks of nodes; kind: the pod, which nodes share an NVLink domain, which have a label.
fn drawing(blocks: &[(u32, u32, u8)]) -> String {
    let mut text = String::new();
    for (at, (nodes, gpus, kind)) in blocks.iter().enumerate() {
        let model = if kind & 1 == 0 { "H100" } else { "H200" };
        text +=
            &format!("pod p{}\nblock b{at}: b{at}n[1-{nodes}] x{gpus} {model}\n", kind >> 1 & 1);
        if *nodes > 1 && kind & 4 == 0 {
            text += &format!("nvlink v{at}: b{at}n[1-2]\n");
        }
        if kind & 8 == 0 {
            text += &format!("label tier=gold: b{at}n1\n");
        }
    }
    text
}

fn crowd_in(world: &mut World, what: u8, a: u32, b: u32) {
    match what {
        0 => drop(world.submit(gang(1 + a % 2, 1 + b % 2, None))),
        1 => drop(world.deploy(filler(&format!("f{}", a % 3), 1 + a % 2, 1 + b % 4))),
        _ => {
            let nodes: Vec<_> = world.cluster.nodes().iter().map(|(id, _)| id).collect();
            let node = nodes[a as usize % nodes.len()];
            world.apply(Command::CordonNode { node, reason: "fan".into() });
        }
    }
    world.settle();
    world.agents();
    world.settle();
}

fn some_shaped((a, b, c): (u32, u32, u32)) -> Option<JobSpec> {
    let level = |n: u32| Level::ALL[1 + n as usize % 4];
    let inner = 1 + a % 2;
    let outer = inner * (1 + (a >> 2) % 2);
    let workers = outer * (1 + (a >> 4) % 2);
    let mut groups = Vec::new();
    if a >> 6 & 1 == 0 {
        groups.push(Group { workers: outer, level: level(b), preferred: b >> 8 & 3 == 0 });
    }
    if a >> 7 & 1 == 0 {
        groups.push(Group { workers: inner, level: level(b >> 4), preferred: b >> 10 & 3 == 0 });
    }
    let spread = |level| Spread { workers: 1 + (c >> 4) % 3, level };
    let rule = |test| LabelRule { key: "tier".into(), test };
    let labels = match c >> 8 & 7 {
        0 => vec![rule(LabelTest::In(vec!["gold".into()]))],
        1 => vec![rule(LabelTest::Missing)],
        _ => Vec::new(),
    };
    let models = [&[][..], &["H100"], &["H100", "H200"], &["B200", "H200"]][(c >> 11) as usize & 3];
    let shape = Shape {
        groups,
        balanced: c & 1 == 0,
        spread: if c >> 1 & 3 == 0 { vec![spread(level(c >> 14))] } else { Vec::new() },
        locality_wait_ms: 0,
        nodes: NodeFilter {
            gpu_models: models.iter().map(|model| (*model).to_owned()).collect(),
            labels,
            exclusive: c >> 16 & 3 == 0,
        },
        min_workers: if c >> 18 & 3 == 0 { outer } else { 0 },
        grow_after_ms: 0,
    };
    let resources = Resources { gpus: 1 + (c >> 20) % 2, ..Resources::default() };
    let required = [None, None, Some(Level::Pod), Some(Level::Block)][(c >> 22) as usize & 3];
    let spec = JobSpec { resources, required, shape, ..gang(workers, 1, None) };
    spec.validate().is_ok().then_some(spec)
}

/// The one queued job of the world is given what an exhaustive search finds for it, and what it is
/// given has the shape it asks for.
fn served(world: &mut World, id: JobId) {
    let cluster = world.cluster.clone();
    let job = cluster.jobs().get(id).unwrap();
    if cluster.queue().count() > 1 {
        return; // others are before it, and may keep what is free
    }
    let proposed = plan(&cluster);
    let found = proposed.decisions.iter().find_map(|decision| match decision {
        Decision::Start { places, .. } => Some((false, places)),
        Decision::Hold { places, .. } => Some((true, places)),
        _ => None,
    });
    let sizes = || {
        (1..=job.spec.workers).rev().filter(|n| job.spec.shape.admits_size(job.spec.workers, *n))
    };
    let strictest = |evict: bool, workers: u32| {
        let preferred = job.spec.shape.groups.iter().filter(|group| group.preferred).count();
        (0..=preferred).find(|given_up| search(&cluster, job, workers, evict, *given_up))
    };
    let text = || format!("{:?}\n{}{}", job.spec, world.picture(), lines(&cluster, &proposed));
    let largest = sizes().find(|workers| strictest(true, *workers).is_some());
    match (found, largest) {
        (None, None) => {}
        (Some((held, places)), Some(workers)) => {
            assert_eq!(places.len() as u32, workers, "{}", text());
            assert_eq!(held, strictest(false, workers).is_none(), "{}", text());
            if !held {
                let given_up = strictest(false, workers).unwrap();
                assert!(has_shape(&cluster, job, places, given_up), "{}", text());
            }
            assert!(has_shape(&cluster, job, places, usize::MAX), "{}", text());
        }
        _ => panic!("the search finds {largest:?} workers:\n{}", text()),
    }
    world.settle(); // apply takes it
    let _said = explain(&world.cluster, id);
}

/// The groups that count once so many preferred ones are given up, from the outside in.
fn counting(job: &Job, given_up: usize) -> Vec<Group> {
    let mut preferred = 0;
    let kept = |group: &&Group| {
        preferred += usize::from(group.preferred);
        !group.preferred || preferred > given_up
    };
    job.spec.shape.groups.iter().filter(kept).copied().collect()
}

fn has_shape(cluster: &Cluster, job: &Job, places: &[Place], given_up: usize) -> bool {
    let nodes: Vec<NodePos> =
        places.iter().map(|place| cluster.pos_of(place.node).unwrap()).collect();
    keeps_shape(cluster, job, &counting(job, given_up), &nodes)
}

/// Whether the first ranks of a gang may stand so.
fn keeps_shape(cluster: &Cluster, job: &Job, groups: &[Group], nodes: &[NodePos]) -> bool {
    let index = cluster.index();
    let together = |level: Level, nodes: &[NodePos]| {
        nodes.windows(2).all(|two| index.domain_of(two[0], level) == index.domain_of(two[1], level))
    };
    let few = |spread: &Spread| {
        nodes.iter().all(|pos| {
            let domain = index.domain_of(*pos, spread.level);
            let there =
                nodes.iter().filter(|other| index.domain_of(**other, spread.level) == domain);
            there.count() as u32 <= spread.workers
        })
    };
    together(job.spec.required.unwrap_or(Level::Site), nodes)
        && groups.iter().all(|g| nodes.chunks(g.workers as usize).all(|c| together(g.level, c)))
        && job.spec.shape.spread.iter().all(few)
}

/// Whether any assignment of ranks to nodes will do: all of them are tried.
fn search(cluster: &Cluster, job: &Job, workers: u32, evict: bool, given_up: usize) -> bool {
    let groups = counting(job, given_up);
    let mut room: Vec<u32> = (0..cluster.index().node_count())
        .map(|pos| room_on(cluster, job, cluster.node_at(NodePos(pos)), evict))
        .collect();
    let mut nodes = Vec::new();
    deeper(cluster, job, &groups, workers, &mut room, &mut nodes)
}

fn deeper(
    cluster: &Cluster,
    job: &Job,
    groups: &[Group],
    workers: u32,
    room: &mut [u32],
    nodes: &mut Vec<NodePos>,
) -> bool {
    if nodes.len() as u32 == workers {
        return true;
    }
    for pos in 0..room.len() {
        if room[pos] == 0 {
            continue;
        }
        room[pos] -= 1;
        nodes.push(NodePos(pos as u32));
        let found = keeps_shape(cluster, job, groups, nodes)
            && deeper(cluster, job, groups, workers, room, nodes);
        nodes.pop();
        room[pos] += 1;
        if found {
            return true;
        }
    }
    false
}

/// Workers that a node could take, with every filler evicted or none.
fn room_on(cluster: &Cluster, job: &Job, node: &Node, evict: bool) -> u32 {
    let record = cluster.fabric().nodes.iter().find(|record| record.name == node.name).unwrap();
    let filter = &job.spec.shape.nodes;
    if !node.schedulable() || !filter.admits(&node.gpu_model, &record.labels) {
        return 0;
    }
    let goes = |id| {
        let allocation = cluster.allocations().get(id).unwrap();
        evict && matches!(allocation.owner, Owner::Instance { .. }) && allocation.stop.is_none()
    };
    let whole = |id: rowen_state::AllocationId| match cluster.allocations().get(id).unwrap().owner {
        Owner::Gang { job, .. } => cluster.jobs().get(job).unwrap().spec.shape.nodes.exclusive,
        Owner::Instance { .. } => false,
    };
    let owners = node.owners();
    let alone = owners.iter().all(|id| goes(*id)) && node.holders().is_empty();
    if (filter.exclusive && !alone) || owners.iter().any(|id| whole(*id)) {
        return 0;
    }
    let usable =
        node.mask(|slot| slot.healthy && slot.held.is_none() && slot.owner.is_none_or(goes));
    usable.count() / job.spec.resources.gpus
}

/// Two workers at first; when the others' GPUs come free, all eight, fillers on them or not.
#[test]
fn a_small_gang_grows_when_it_is_worth_a_restart() {
    let mut world = World::new(TWO_BLOCKS);
    let big = world.submit(gang(6, 4, None));
    world.settle();
    world.agents();
    let shape = Shape {
        groups: vec![group(2, Level::Nvlink)],
        min_workers: 2,
        grow_after_ms: 60_000,
        ..Shape::default()
    };
    let job = world.submit(shaped(8, 4, shape));
    world.settle();
    world.agents();
    world.finish(big, 0);
    world.deploy(filler("serve", 4, 3));
    world.settle();
    world.agents();
    check(&world, &expect![[r#""#]]);
    expect!["job 2 runs with 2 of 8 workers; it grows when it could have 4 and no gang that waits takes them, no sooner than in 60 s"].assert_eq(&explain(&world.cluster, job).summary);
    world.now_ms += 60_000;
    world.apply(Command::Tick);
    check(
        &world,
        &expect![[r#"
        grow 2 on a1:{0, 1, 2, 3} a2:{0, 1, 2, 3} a3:{0, 1, 2, 3} a4:{0, 1, 2, 3} b1:{0, 1, 2, 3} b2:{0, 1, 2, 3} b3:{0, 1, 2, 3} b4:{0, 1, 2, 3}, evicting [3, 4, 5] (from 2 to 8 workers: pod p-spine: 3 fillers leave, within 5000 ms)
    "#]],
    );
    world.cycle();
    expect![[r#"
        a1  SSSS
        a2  ++++
        a3  ++++
        a4  ++++
        b1  SSSS
        b2  SSSS
        b3  ////
        b4  ////
    "#]]
    .assert_eq(&world.picture());
    assert_eq!(world.cluster.jobs().get(job).unwrap().state, JobState::Stopping);
    assert!(plan(&world.cluster).decisions.is_empty(), "nobody slips in");
    world.agents();
    assert_eq!(world.cluster.verify(), []);
    let grown = world.cluster.jobs().get(job).unwrap();
    assert_eq!((grown.state, grown.attempt), (JobState::Starting, 2));
    expect![[r#"
        a1  2222
        a2  2222
        a3  2222
        a4  2222
        b1  2222
        b2  2222
        b3  2222
        b4  2222
    "#]]
    .assert_eq(&world.picture());
    world.agents();
    world.now_ms += 600_000;
    world.apply(Command::Tick);
    assert!(!world.plan().contains("grow"), "it has all it asked for");
}

/// A gang that is about to grow loses its hold, or is cancelled: it starts again, or ends.
#[test]
fn growth_that_is_broken_off_leaves_nothing_behind() {
    for cancel in [false, true] {
        let mut world = World::new(TWO_BLOCKS);
        let big = world.submit(gang(6, 4, None));
        world.settle();
        world.agents();
        let shape = Shape { min_workers: 2, grow_after_ms: 1_000, ..Shape::default() };
        let job = world.submit(shaped(8, 4, shape));
        world.settle();
        world.agents();
        world.finish(big, 0);
        world.now_ms += 1_000;
        world.apply(Command::Tick);
        world.cycle();
        match cancel {
            true => world.apply(Command::CancelJob(job)),
            false => {
                let node = world.node("a1");
                world.apply(Command::CordonNode { node, reason: "fan".into() })
            }
        };
        assert_eq!(world.cluster.verify(), []);
        assert!(!world.picture().contains('+'), "{}", world.picture());
        world.agents();
        assert_eq!(world.cluster.verify(), []);
        world.settle();
        let state = world.cluster.jobs().get(job).unwrap().state;
        assert_eq!(state, if cancel { JobState::Cancelled } else { JobState::Starting });
    }
}
