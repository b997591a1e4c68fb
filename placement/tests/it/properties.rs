//! Random worlds: every plan is carried out, disturbs no more than it must, and finds what an
//! exhaustive search finds.

use proptest::prelude::*;
use rowen_placement::{explain, plan};
use rowen_state::{
    AllocationId, Cluster, Command, Decision, FillerState, GpuMask, GpuSlot, Job, Node, NodeId,
    Owner, Place, Plan, Reply, Resources, TaskPhase,
};
use rowen_topology::{DomainId, Level, NodePos};

use crate::{
    validator,
    world::{World, filler, gang},
};

/// One thing that happens; what, and three numbers that say to whom and how.
type Event = (u8, u32, u32, u32);

/// In the reason of a gang that GPUs are kept for.
const KEPT: &str = "holds it once";

/// Nodes, GPUs a node and kind of each block.
type Blocks = Vec<(u32, u32, u8)>;

fn drawing(blocks: &Blocks) -> String {
    let block = |(at, (nodes, gpus, kind)): (usize, &(u32, u32, u8))| {
        let site = if kind & 4 == 0 { "s0" } else { "s1" };
        let model = if kind & 1 == 0 { "H100" } else { "H200" };
        let pod = kind >> 1;
        format!("site {site}\npod {site}p{pod}\nblock b{at}: b{at}n[1-{nodes}] x{gpus} {model}\n")
    };
    blocks.iter().enumerate().map(block).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn plans_hold_in_random_worlds(
        blocks in prop::collection::vec((1u32..=4, 1u32..=8, 0u8..8), 1..=4),
        events in prop::collection::vec((0u8..100, any::<u32>(), any::<u32>(), any::<u32>()), 1..40),
    ) {
        let mut world = World::new(&drawing(&blocks));
        let mut late: Option<Plan> = None;
        for event in events {
            happen(&mut world, event);
            if let Some(late) = late.take() {
                commit_late(&mut world, late);
            }
            let proposed = plan(&world.cluster);
            let restored = Cluster::from_snapshot(&world.cluster.to_snapshot().unwrap()).unwrap();
            assert_eq!(plan(&restored), proposed, "it depends on more than the state");
            let first = world.cluster.queue().next().cloned();
            if let Some(job) = first {
                first_gang_is_served(&world.cluster, &job, &proposed);
            }
            validator::check(&world.cluster, &proposed);
            every_victim_is_needed(&world.cluster, &proposed);
            explanations_agree(&world.cluster, &proposed);
            if event.1 % 5 == 0 {
                late = Some(proposed);
            } else {
                world.cycle();
            }
        }
        world.settle();
        nothing_is_left_idle(&world.cluster);
    }
}

/// Something has happened since the plan was made: what no longer fits is refused, no harm done.
fn commit_late(world: &mut World, late: Plan) {
    let all = late.decisions.len() as u32;
    let reply = world.apply(Command::CommitPlan(late));
    let Reply::Planned { accepted, rejected } = reply else { panic!("{reply:?}") };
    assert_eq!(accepted + rejected, all);
    assert_eq!(world.cluster.verify(), []);
}

/// `why` says of every queued job what the plan says.
fn explanations_agree(cluster: &Cluster, plan: &Plan) {
    for queued in cluster.queue() {
        let planned = plan.decisions.iter().find_map(|decision| match decision {
            Decision::Start { job, why, .. } | Decision::Hold { job, why, .. } => {
                (*job == queued.id).then_some(why)
            }
            Decision::Wait { job, reason } => (*job == queued.id).then_some(reason),
            _ => None,
        });
        let planned = planned.unwrap_or(&queued.reason);
        let said = explain(cluster, queued.id).summary;
        assert!(said.ends_with(&format!(": {planned}")), "{said:?} but planned {planned:?}");
    }
}

fn happen(world: &mut World, (what, a, b, c): Event) {
    world.now_ms += u64::from(c % 3_000);
    let nodes: Vec<NodeId> = world.cluster.nodes().iter().map(|(id, _)| id).collect();
    let jobs: Vec<_> = world.cluster.jobs().iter().map(|(id, _)| id).collect();
    let fillers: Vec<_> = world.cluster.fillers().iter().map(|(id, _)| id).collect();
    let node = nodes[a as usize % nodes.len()];
    let came = world.cluster.nodes().get(node).expect("just listed").came;
    let job = (!jobs.is_empty()).then(|| jobs[a as usize % jobs.len()]);
    let which = (!fillers.is_empty()).then(|| fillers[a as usize % fillers.len()]);
    let command = match what {
        0..=29 => Some(Command::SubmitJob(some_gang(a, b, c))),
        30..=49 => Some(Command::DeployFiller(some_filler(a, b, c))),
        50..=61 => return world.agents(),
        62..=66 => Some(Command::Report(world.task_reports(|allocation, rank| {
            let ends = allocation.stop.is_some() && allocation.id.0 % 2 == u64::from(a % 2);
            (ends && allocation.tasks[rank].phase.live()).then_some(TaskPhase::Exited { code: 143 })
        }))),
        67..=72 => return job.map_or((), |job| world.finish(job, (b % 2) as i32)),
        73..=75 => job.map(Command::CancelJob),
        76..=78 => job.map(Command::RequeueJob),
        79..=81 => which.map(Command::DrainFiller),
        82 => which.map(Command::RemoveFiller),
        83..=84 => Some(Command::CordonNode { node, reason: "fan".into() }),
        85..=86 => Some(Command::DrainNode { node, reason: "fan".into() }),
        87..=89 => Some(Command::UndrainNode(node)),
        90..=91 => Some(Command::NodeSilent { node, came }),
        92 => Some(Command::NodeLost { node, came }),
        93..=96 => return world.node_up(node, GpuMask(u64::from(b | c))),
        _ => {
            world.now_ms += u64::from(b % 60_000);
            Some(Command::Tick)
        }
    };
    if let Some(command) = command {
        let _refused_is_fine = world.try_apply(command);
    }
}

fn resources(a: u32, b: u32) -> Resources {
    Resources {
        gpus: 1 + a % [2, 4, 8][b as usize % 3],
        gpu_model: [None, None, Some("H100".into()), Some("H200".into())][(b >> 3) as usize % 4]
            .clone(),
        cpus: [0, 0, 5, 16, 30, 60][(b >> 5) as usize % 6],
        memory_mib: [0, 0, 60 << 10, 500 << 10][(b >> 9) as usize % 4],
    }
}

fn some_gang(a: u32, b: u32, c: u32) -> rowen_state::JobSpec {
    let level = |n: u32| Level::ALL.get(n as usize % 7).copied();
    let mut spec = gang(1 + (a >> 8) % 6, 1, level(c));
    spec.resources = resources(a, b);
    spec.preferred = level(c >> 4).filter(|level| spec.required.is_none_or(|r| *level >= r));
    spec.priority = (c >> 8) % 3;
    spec.time_limit_ms = u64::from(c >> 12) % 100_000;
    spec.restarts = 3;
    spec
}

fn some_filler(a: u32, b: u32, c: u32) -> rowen_state::FillerSpec {
    let mut spec = filler(&format!("f{}", c % 5), 1, 1 + (c >> 4) % 20);
    spec.resources = resources(a, b);
    spec.min_instances = (c >> 9) % (spec.max_instances + 1);
    spec.value_micros = u64::from(c >> 14) % 4 * 1_000_000;
    spec.notice_ms = 1_000 + u64::from(c >> 16) % 9_000;
    spec.warm_up_ms = u64::from(b >> 16) % 60_000;
    spec
}

/// How many workers a node can take, at most: as it is, or with every filler evicted.
fn workers_on(cluster: &Cluster, node: &Node, claim: &Resources, evict: bool) -> u32 {
    let may_go = |id: &AllocationId| {
        let allocation = cluster.allocations().get(*id).unwrap();
        matches!(allocation.owner, Owner::Instance { .. }) && allocation.stop.is_none()
    };
    let victims: Vec<_> = node.owners().into_iter().filter(|id| evict && may_go(id)).collect();
    room_without(cluster, node, claim, &victims)
}

/// Whether a domain has room for the gang, as it is or with every filler evicted.
fn holds(cluster: &Cluster, job: &Job, domain: DomainId, evict: bool) -> bool {
    let nodes = cluster.index().domain(domain).nodes.clone();
    let room: u32 = nodes
        .map(|pos| workers_on(cluster, cluster.node_at(NodePos(pos)), &job.spec.resources, evict))
        .sum();
    room >= job.spec.workers
}

fn any_holds(cluster: &Cluster, job: &Job, level: Level, evict: bool) -> bool {
    (0..cluster.index().domains(level).len() as u32)
        .any(|ordinal| holds(cluster, job, DomainId { level, ordinal }, evict))
}

/// The first gang of the queue starts if it can, as tightly as it can, and holds if evictions
/// make room for it.
fn first_gang_is_served(cluster: &Cluster, job: &Job, plan: &Plan) {
    let required = job.spec.required.unwrap_or(Level::Site);
    let found = plan.decisions.iter().find_map(|decision| match decision {
        Decision::Start { job: id, places, .. } if *id == job.id => Some((true, places)),
        Decision::Hold { job: id, places, .. } if *id == job.id => Some((false, places)),
        _ => None,
    });
    let finest = job.spec.preferred.unwrap_or(Level::Node);
    let mut levels = Level::ALL.into_iter().rev().filter(|l| *l <= finest && *l >= required);
    let tightest = levels.find(|level| any_holds(cluster, job, *level, false));
    match (found, tightest) {
        (Some((true, places)), Some(level)) => {
            let domain = |place: &Place| {
                cluster.index().domain_of(cluster.pos_of(place.node).unwrap(), level)
            };
            let first = domain(&places[0]);
            assert!(places.iter().all(|place| domain(place) == first), "wider than {level}");
        }
        (Some((false, _)), None) => {
            assert!(any_holds(cluster, job, required, true));
        }
        (None, None) => {
            let could = any_holds(cluster, job, required, true);
            assert!(
                !could,
                "evictions would make room for {:?}:\n{}{}",
                job.spec,
                crate::world::picture(cluster),
                crate::world::lines(cluster, plan),
            );
        }
        (found, tightest) => panic!("{found:?}, free GPUs hold it on {tightest:?}"),
    }
}

/// Without any one of its victims a hold is refused, and its own domain does not hold the gang.
fn every_victim_is_needed(cluster: &Cluster, plan: &Plan) {
    // Kept until what leaves has left, or booked for a planned start, or until it is enough.
    let kept = |reason: &str| {
        [KEPT, "; starts by ", "are kept for it"].iter().any(|word| reason.contains(word))
    };
    if cluster.queue().any(|job| kept(&job.reason))
        || plan
            .decisions
            .iter()
            .any(|decision| matches!(decision, Decision::Wait { reason, .. } if kept(reason)))
    {
        return; // free GPUs that the state does not know to be kept
    }
    let held = plan.decisions.iter().enumerate().filter_map(|(at, decision)| match decision {
        Decision::Hold { job, places, victims, why } => Some((at, *job, places, victims, why)),
        _ => None,
    });
    for (at, job, places, victims, why) in held {
        let mut world = cluster.clone();
        let earlier = Plan { based_on: 0, decisions: plan.decisions[..at].to_vec() };
        commit(&mut world, earlier);
        let job_now = world.jobs().get(job).unwrap().clone();
        let domain = span(&world, places);
        for (index, victim) in victims.iter().enumerate() {
            let mut fewer = victims.clone();
            fewer.remove(index);
            if !fewer.is_empty() {
                let hold = Decision::Hold {
                    job,
                    places: places.clone(),
                    victims: fewer.clone(),
                    why: why.clone(),
                };
                let reply = commit(&mut world.clone(), Plan { based_on: 0, decisions: vec![hold] });
                assert_eq!(reply, Reply::Planned { accepted: 0, rejected: 1 }, "{victim} in vain");
            }
            let room: u32 = world
                .index()
                .domain(domain)
                .nodes
                .clone()
                .map(|pos| world.node_at(NodePos(pos)))
                .map(|node| room_without(&world, node, &job_now.spec.resources, &fewer))
                .sum();
            assert!(
                room < job_now.spec.workers,
                "{victim} need not leave {domain:?} for {:?}:\n{}{}",
                job_now.spec,
                crate::world::picture(&world),
                crate::world::lines(&world, plan),
            );
        }
    }
}

/// Workers that a node holds when exactly `victims` have gone.
fn room_without(
    cluster: &Cluster,
    node: &Node,
    claim: &Resources,
    victims: &[AllocationId],
) -> u32 {
    if !node.schedulable() || claim.gpu_model.as_ref().is_some_and(|m| *m != node.gpu_model) {
        return 0;
    }
    let theirs = |slot: &GpuSlot| {
        slot.healthy
            && slot.held.is_none()
            && slot.owner.is_some_and(|owner| victims.contains(&owner))
    };
    let gpus = node.free().or(node.mask(theirs)).count();
    let (mut cpus, mut memory_mib) = cluster.claimed(node);
    for owner in node.owners().into_iter().filter(|owner| victims.contains(owner)) {
        let resources = &cluster.allocations().get(owner).unwrap().resources;
        (cpus, memory_mib) = (cpus - resources.cpus, memory_mib - resources.memory_mib);
    }
    let fits = |workers: &u32| {
        let all_cpus = cpus + workers * claim.cpus;
        let all_memory_mib = memory_mib + u64::from(*workers) * claim.memory_mib;
        (claim.cpus == 0 || all_cpus <= node.cpus)
            && (claim.memory_mib == 0 || all_memory_mib <= node.memory_mib)
    };
    (1..=gpus / claim.gpus).take_while(fits).last().unwrap_or(0)
}

fn span(cluster: &Cluster, places: &[Place]) -> DomainId {
    let pos: Vec<NodePos> =
        places.iter().map(|place| cluster.pos_of(place.node).unwrap()).collect();
    let index = cluster.index();
    Level::ALL
        .into_iter()
        .rev()
        .map(|level| index.domain_of(pos[0], level))
        .find(|domain| pos.iter().all(|pos| index.domain(*domain).nodes.contains(&pos.0)))
        .unwrap()
}

fn commit(cluster: &mut Cluster, plan: Plan) -> Reply {
    let entry = rowen_state::Entry {
        at_ms: cluster.now_ms(),
        principal: "planner".into(),
        request: None,
        command: Command::CommitPlan(plan),
    };
    cluster.apply(cluster.applied() + 1, &entry).answer.unwrap().unwrap()
}

/// Once nothing is left to decide, no filler that may start has room, but for what is kept.
fn nothing_is_left_idle(cluster: &Cluster) {
    if cluster.queue().any(|job| job.reason.contains(KEPT)) {
        return;
    }
    for filler in cluster.fillers().values() {
        let may = filler.state == FillerState::Active
            && filler.backoff_until_ms <= cluster.now_ms()
            && filler.instances.len() < filler.spec.max_instances as usize;
        let fits = may
            && cluster
                .nodes()
                .values()
                .any(|node| workers_on(cluster, node, &filler.spec.resources, false) > 0);
        assert!(!fits, "{} could start: {}", filler.spec.name, filler.reason);
    }
}
