//! Planned starts: large gangs do not starve, nobody who starts beside a booking makes it later,
//! and a slow simulator that walks every moment and every domain finds the same times.

use std::collections::BTreeMap;

use expect_test::expect;
use proptest::prelude::*;
use rowen_placement::{PlannedStart, dry_run, explain, plan, planned_starts};
use rowen_state::{Cluster, Command, Decision, Job, JobId, JobSpec, JobState, Node, TaskPhase};
use rowen_topology::{DomainId, Level, NodePos};

use crate::world::{World, filler, gang};

/// A gang is taken to be up so long after it was bound.
const START_MS: u64 = 60_000;

fn limited(workers: u32, gpus: u32, limit_s: u64) -> JobSpec {
    let mut spec = gang(workers, gpus, None);
    (spec.time_limit_ms, spec.notice_ms) = (limit_s * 1_000, 0);
    spec
}

fn state(world: &World, job: JobId) -> JobState {
    world.cluster.jobs().get(job).unwrap().state
}

/// Time passes: limits end gangs, and agents do as they are told.
fn pass(world: &mut World, ms: u64) {
    world.now_ms += ms;
    world.apply(Command::Tick);
    world.agents();
    world.settle();
    world.agents();
}

#[test]
fn a_large_gang_does_not_starve_behind_a_stream_of_small_ones() {
    for limit_s in [0, 900] {
        let mut world = World::new("pod p\nblock a: a[1-4] x4\n");
        let mut running: Vec<JobId> =
            (0..8).map(|_| world.submit(limited(1, 2, limit_s))).collect();
        world.settle();
        world.agents();
        let large = world.submit(limited(4, 4, limit_s));
        // A small one ends every minute, and two more come.
        let mut minutes = 0;
        while state(&world, large) == JobState::Queued {
            let done = running.remove(0);
            running.extend([0, 1].map(|_| world.submit(limited(1, 2, limit_s))));
            world.finish(done, 0);
            pass(&mut world, 60_000);
            minutes += 1;
            assert!(minutes < 40, "limit {limit_s}: it starves:\n{}", world.picture());
        }
        assert!(minutes > 5, "limit {limit_s}: nobody was in its way");
    }
}

#[test]
fn a_short_gang_starts_beside_a_booking_and_a_long_one_does_not() {
    let mut world = World::new("pod p\nblock a: a[1-2] x4\n");
    world.submit(limited(1, 4, 3_600));
    world.settle();
    world.agents();
    world.submit(limited(2, 4, 3_600));
    world.submit(limited(1, 4, 4_000));
    world.submit(limited(1, 4, 3_000));
    expect![[r#"
        wait 2: needs 2 × 4 GPUs inside one site; the nearest, site lab, can give 4 of 8 GPUs: gangs have 4; starts by 1970-01-01 01:16:40 UTC at the latest, when job 1 reaches its time limit
        wait 3: needs 4 GPUs inside one site; the nearest, site lab, can give 0 of 4 GPUs: gangs have 4, kept for a gang ahead: 4; starts by 1970-01-01 02:17:40 UTC at the latest, when job 2 reaches its time limit
        start 4 on a2:{0, 1, 2, 3} (free GPUs in node a2, the tightest fit: room for 0 more such workers is left there)
    "#]]
    .assert_eq(&world.plan());
    let run = dry_run(&world.cluster, &limited(1, 4, 4_000));
    let planned = Some(PlannedStart { by_ms: 8_260_000, after: Some(JobId(2)) });
    assert_eq!(run.planned, planned, "beside the other long one: {}", run.reason);
    assert!(dry_run(&world.cluster, &limited(1, 4, 3_000)).planned.is_some(), "4 has the node");
    world.settle();
    let why = explain(&world.cluster, JobId(2));
    assert_eq!(why.start_estimate_ms, Some(4_600_000));
    assert!(why.summary.contains("starts by 1970-01-01 01:16:40 UTC"), "{}", why.summary);
}

/// GPUs that are booked for later are filled meanwhile, and a short gang gets them from the fillers.
#[test]
fn fillers_use_what_is_booked_and_leave_for_a_short_gang() {
    let mut world = World::new("pod p\nblock a: a[1-2] x4\n");
    world.submit(limited(1, 4, 3_600));
    world.settle();
    world.agents();
    world.submit(limited(2, 4, 3_600));
    world.deploy(filler("chat", 4, 9));
    world.settle();
    expect![[r#"
        a1  1111
        a2  cccc
    "#]]
    .assert_eq(&world.picture());
    let long = world.submit(limited(1, 4, 7_200));
    let short = world.submit(limited(1, 4, 1_200));
    world.settle();
    assert_eq!((state(&world, long), state(&world, short)), (JobState::Queued, JobState::Holding));
    expect![[r#"
        a1  1111
        a2  CCCC
    "#]]
    .assert_eq(&world.picture());
}

/// The clock alone changes no reason, and a start that hardly moved is not said again.
#[test]
fn planned_starts_do_not_fill_the_log() {
    let mut world = World::new("pod p\nblock a: a[1-4] x4\n");
    world.submit(limited(2, 4, 3_600));
    world.submit(limited(2, 4, 3_590));
    world.settle();
    for job in 0..20 {
        world.submit(limited(3 + job % 2, 4, 1_000));
    }
    world.settle();
    for _ in 0..200 {
        world.now_ms += 1_000; // they are not up yet, either
        world.apply(Command::Tick);
        let said = plan(&world.cluster).decisions.len();
        world.cycle();
        assert!(said == 0 || world.now_ms == 1_061_000, "{said} said at {}", world.now_ms);
    }
    world.agents();
    let said = plan(&world.cluster).decisions.len();
    assert!(said <= 8, "8 have a planned start, {said} are said anew");
}

/// Workers of a job that a node takes from a moment on, when what was `given` before it is gone.
fn room(cluster: &Cluster, node: &Node, job: &Job, at_ms: u64) -> u32 {
    if !node.schedulable() {
        return 0;
    }
    let ends_ms = |id: JobId| {
        let job = cluster.jobs().get(id).unwrap();
        let from_ms = match job.running_ms {
            0 => job.bound_ms + START_MS,
            running_ms => running_ms,
        };
        let length_ms = job.spec.time_limit_ms + job.spec.notice_ms;
        if job.spec.time_limit_ms == 0 { u64::MAX } else { from_ms + length_ms }
    };
    let stays = |slot: &rowen_state::GpuSlot| match slot.owner {
        None => false,
        Some(owner) => match cluster.allocations().get(owner).unwrap().owner {
            rowen_state::Owner::Gang { job, .. } => ends_ms(job) > at_ms,
            rowen_state::Owner::Instance { .. } => false,
        },
    };
    let claim = &job.spec.resources;
    let gpus = node.mask(|slot| slot.healthy && !stays(slot)).count() / claim.gpus;
    let mut cpus = node.cpus;
    for owner in node.owners() {
        let allocation = cluster.allocations().get(owner).unwrap();
        let gpus = node.mask(|slot| slot.owner == Some(owner) && stays(slot)).count();
        cpus -= allocation.resources.cpus * (gpus / allocation.resources.gpus);
    }
    gpus.min(cpus.checked_div(claim.cpus).unwrap_or(u32::MAX))
}

/// The first moment at which some domain holds the first gang that waits: every moment at which
/// anything ends, every domain.
fn slowly(cluster: &Cluster, job: &Job) -> Option<u64> {
    let mut moments: Vec<u64> = (cluster.jobs().values())
        .filter(|job| job.allocation.is_some() && job.spec.time_limit_ms > 0)
        .map(|job| {
            let from_ms = if job.running_ms > 0 { job.running_ms } else { job.bound_ms + START_MS };
            from_ms + job.spec.time_limit_ms + job.spec.notice_ms
        })
        .collect();
    moments.sort_unstable();
    let index = cluster.index();
    let level = job.spec.required.unwrap_or(Level::Site);
    moments.into_iter().find(|at_ms| {
        (0..index.domains(level).len() as u32).any(|ordinal| {
            let nodes = index.domain(DomainId { level, ordinal }).nodes.clone();
            let node = |pos| cluster.node_at(NodePos(pos));
            nodes.map(|pos| room(cluster, node(pos), job, *at_ms)).sum::<u32>() >= job.spec.workers
        })
    })
}

fn waits(cluster: &Cluster) -> BTreeMap<JobId, u64> {
    planned_starts(cluster).into_iter().map(|(job, start)| (job, start.by_ms)).collect()
}

fn some_gang((size, limit, queue, level): (u32, u32, u8, usize)) -> JobSpec {
    let mut spec = limited(1 + size % 6, 1 + (size >> 4) % 4, u64::from(limit % 40) * 100);
    spec.resources.cpus = [0, 0, 8, 24][(size >> 8) as usize % 4];
    spec.required = [None, None, Some(Level::Pod), Some(Level::Block)][level % 4];
    spec.queue = ["day", "night"][usize::from(queue % 2)].into();
    spec
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// In worlds without fillers, where nothing breaks: the first gang that waits has the start
    /// that the slow simulator finds, and no cycle makes a planned start later.
    #[test]
    fn no_planned_start_moves_later_because_of_who_starts_beside_it(
        blocks in prop::collection::vec(1u32..=3, 1..=3),
        gangs in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u8>(), 0usize..4), 4..24),
        ends in prop::collection::vec((any::<u8>(), 0u64..600_000), 4..10),
    ) {
        let block = |(at, nodes): (usize, &u32)| format!("block b{at}: b{at}n[1-{nodes}] x4\n");
        let blocks: String = blocks.iter().enumerate().map(block).collect();
        let mut world = World::new(&format!("pod p0\n{blocks}"));
        let mut gangs = gangs.into_iter();
        for (ending, ms) in ends {
            for spec in gangs.by_ref().take(4) {
                world.submit(some_gang(spec));
            }
            beside(&mut world);
            world.agents();
            let running: Vec<JobId> = (world.cluster.jobs().values())
                .filter(|job| job.state == JobState::Running).map(|job| job.id).collect();
            if !running.is_empty() && ending % 3 == 0 {
                world.finish(running[usize::from(ending) % running.len()], 0);
            }
            world.now_ms += ms;
            world.apply(Command::Tick);
            let over = world.task_reports(|allocation, rank| {
                (allocation.stop.is_some() && allocation.tasks[rank].phase.live())
                    .then_some(TaskPhase::Exited { code: 143 })
            });
            world.apply(Command::Report(over));
        }
    }
}

/// Plans are carried out until nothing is left to decide.
fn beside(world: &mut World) {
    for _ in 0..8 {
        let before = waits(&world.cluster);
        let first = world.cluster.queue().next().cloned();
        let proposed = plan(&world.cluster);
        if let Some(job) = first {
            let starts =
                |one: &Decision| matches!(one, Decision::Start { job: id, .. } if *id == job.id);
            if !proposed.decisions.iter().any(starts) {
                assert_eq!(
                    before.get(&job.id).copied(),
                    slowly(&world.cluster, &job),
                    "{:?}",
                    job.spec
                );
            }
        }
        world.cycle();
        let after = waits(&world.cluster);
        for (job, by_ms) in &before {
            let later = after.get(job).filter(|later| *later > by_ms);
            assert_eq!(later, None, "job {job} was to start by {by_ms}:\n{}", world.picture());
            let waits = state(world, *job) == JobState::Queued;
            assert!(!waits || after.contains_key(job), "job {job} lost its start by {by_ms}");
        }
        if proposed.decisions.is_empty() {
            return;
        }
    }
    panic!("plans do not converge: {:#?}", plan(&world.cluster));
}
