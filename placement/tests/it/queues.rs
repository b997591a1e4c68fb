//! Queues: whose turn it is, what each may have, and who leaves for whom.

use expect_test::expect;
use proptest::prelude::*;
use rowen_placement::{dry_run, explain, plan};
use rowen_state::{
    Command, Decision, JobId, JobSpec, JobState, Owner, Plan, QueueSpec, Quota, Reply,
};

use crate::world::{World, gang};

fn queue(name: &str, guarantee_gpus: u64, limit_gpus: Option<u64>) -> QueueSpec {
    QueueSpec {
        name: name.into(),
        parent: String::new(),
        quota: Quota { guarantee_gpus, limit_gpus },
        by_model: Default::default(),
        lend_gpus: None,
        weight: 1,
        preempts: false,
        min_run_ms: 0,
    }
}

fn world(text: &str, queues: &[QueueSpec]) -> World {
    let mut world = World::new(text);
    for queue in queues {
        world.apply(Command::SetQueue(queue.clone()));
    }
    world
}

fn job(queue: &str, workers: u32, gpus: u32, priority: u32) -> JobSpec {
    JobSpec { queue: queue.into(), priority, ..gang(workers, gpus, None) }
}

fn settle(world: &mut World) {
    world.settle();
    world.agents();
    world.settle();
}

fn state(world: &World, job: JobId) -> JobState {
    world.cluster.jobs().get(job).unwrap().state
}

/// Two nodes of four.
const SMALL: &str = "pod p\nblock a: a[1-2] x4\n";

#[test]
fn a_queue_keeps_to_its_limit_and_to_that_of_its_parent() {
    let mut lab = queue("lab", 0, Some(6));
    lab.by_model = [("H100".into(), Quota { guarantee_gpus: 0, limit_gpus: Some(5) })].into();
    let vision = QueueSpec { parent: "lab".into(), ..queue("vision", 0, Some(4)) };
    let mut world = world(SMALL, &[lab, vision]);
    for (queue, gpus) in [("vision", 3), ("vision", 2), ("vision", 1), ("lab", 1), ("lab", 1)] {
        world.submit(job(queue, 1, gpus, 0));
    }
    expect![[r#"
        start 4 on a1:{0} (free GPUs in node a1, the tightest fit: room for 3 more such workers is left there)
        start 5 on a1:{1} (free GPUs in node a1, the tightest fit: room for 2 more such workers is left there)
        start 1 on a2:{0, 1, 2} (free GPUs in node a2, the tightest fit: room for 0 more such workers is left there)
        wait 2: queue vision may have 4 GPUs: 2 more would be too many
        wait 3: queue lab may have 5 H100 GPUs: 1 more would be too many
    "#]]
    .assert_eq(&world.plan());
    settle(&mut world);
    let why = explain(&world.cluster, JobId(2));
    assert_eq!(why.binding_constraint, "what its queue may have");
    assert_eq!(world.plan(), "", "it is not said again");
    // Too much is refused by apply, whoever plans it.
    let places = vec![rowen_state::Place {
        node: world.node("a1"),
        gpus: world.cluster.node_named("a1").unwrap().free().lowest(2).unwrap(),
    }];
    let start = Decision::Start { job: JobId(2), places, why: String::new() };
    let reply = world.apply(Command::CommitPlan(Plan { based_on: 0, decisions: vec![start] }));
    assert_eq!(reply, Reply::Planned { accepted: 0, rejected: 1 });
}

#[test]
fn who_has_had_less_for_its_weight_goes_first() {
    let heavy = QueueSpec { weight: 3, ..queue("heavy", 0, None) };
    let mut world = world(SMALL, &[queue("light", 0, None), heavy]);
    let first = [world.submit(job("light", 1, 4, 0)), world.submit(job("heavy", 1, 4, 0))];
    settle(&mut world);
    world.now_ms += 3_600_000;
    first.into_iter().for_each(|job| world.finish(job, 0));
    // Both have had 4 GPU-hours; one counts for a third. A high priority counts in its queue alone.
    let light = world.submit(job("light", 1, 8, 900));
    let heavy = [1, 2].map(|priority| world.submit(job("heavy", 1, 4, priority)));
    assert_eq!(explain(&world.cluster, heavy[1]).queue_position, 1);
    assert_eq!(explain(&world.cluster, heavy[0]).queue_position, 2);
    assert_eq!(explain(&world.cluster, light).queue_position, 3);
    settle(&mut world);
    assert_eq!(heavy.map(|job| state(&world, job)), [JobState::Running; 2]);
    // Weeks later that is forgotten, but for what they have now.
    let spent = |world: &World| world.cluster.queue_named("light").unwrap().spent_at(world.now_ms);
    let before = spent(&world);
    world.now_ms += 7 * 86_400_000;
    assert_eq!(spent(&world), before / 2);
}

#[test]
fn a_queue_below_its_guarantee_takes_back_what_was_borrowed() {
    let prod = QueueSpec { min_run_ms: 60_000, ..queue("batch", 4, None) };
    let mut world = world(SMALL, &[queue("prod", 4, None), prod]);
    let batch: Vec<JobId> = (0..4).map(|_| world.submit(job("batch", 1, 2, 0))).collect();
    settle(&mut world);
    let wants = world.submit(job("prod", 1, 3, 0));
    world.settle();
    assert_eq!(state(&world, wants), JobState::Queued, "not before their minimum run");
    world.now_ms += 60_000;
    world.apply(Command::Tick);
    let run = dry_run(&world.cluster, &job("prod", 1, 3, 1));
    assert_eq!((run.victims.len(), run.start_in_ms), (2, Some(120_000)), "{}", run.reason);
    expect![[r#"
        hold 5 on a2:{0, 1, 2}, evicting [3, 4] (node a2: jobs 4 (queue batch), 3 (queue batch) evicted, none of them could be spared, within 120000 ms)
    "#]]
    .assert_eq(&world.plan());
    settle(&mut world);
    assert_eq!(state(&world, wants), JobState::Starting);
    world.agents();
    let states: Vec<JobState> = batch.iter().map(|job| state(&world, *job)).collect();
    use JobState::{Queued, Running};
    assert_eq!(states, [Running, Running, Queued, Queued], "they wait again, whole");
    // Its guarantee is used up, and batch has only what it is guaranteed.
    let more = world.submit(job("prod", 1, 2, 0));
    world.settle();
    assert_eq!(state(&world, more), Queued);
    assert_eq!(world.cluster.meta().evictions, 2);
}

#[test]
fn a_higher_priority_takes_only_where_its_queue_allows() {
    for preempts in [false, true] {
        let own = QueueSpec { preempts, ..queue("lab", 0, None) };
        let mut world = world(SMALL, &[own, queue("other", 0, None)]);
        let low = world.submit(job("lab", 1, 4, 1));
        let other = world.submit(job("other", 1, 4, 0));
        settle(&mut world);
        let same = world.submit(job("lab", 1, 4, 1));
        let high = world.submit(job("lab", 1, 4, 2));
        settle(&mut world);
        world.agents();
        let states = [low, other, same, high].map(|job| state(&world, job));
        use JobState::{Queued, Running};
        match preempts {
            false => assert_eq!(states, [Running, Running, Queued, Queued]),
            true => assert_eq!(states, [Queued, Running, Queued, Running]),
        }
    }
}

#[test]
fn what_is_not_lent_stays_open() {
    let keeps = QueueSpec { lend_gpus: Some(1), ..queue("prod", 4, None) };
    let mut world = world(SMALL, &[keeps, queue("batch", 0, None)]);
    for gpus in [2, 2, 2, 2, 1] {
        world.submit(job("batch", 1, gpus, 0));
    }
    settle(&mut world);
    expect![[r#"
        a1  1122
        a2  5...
    "#]]
    .assert_eq(&world.picture());
    let reason = &world.cluster.jobs().get(JobId(3)).unwrap().reason;
    expect!["queue prod is guaranteed 3 GPUs more and does not lend them"].assert_eq(reason);
    world.submit(job("prod", 1, 3, 0));
    settle(&mut world);
    expect![[r#"
        a1  1122
        a2  5666
    "#]]
    .assert_eq(&world.picture());
}

#[test]
fn an_unknown_queue_is_refused_once_there_are_queues() {
    let mut world = world(SMALL, &[]);
    world.submit(job("anything", 1, 1, 0));
    world.apply(Command::SetQueue(queue("lab", 0, None)));
    let refused = world.try_apply(Command::SubmitJob(job("lba", 1, 1, 0)));
    expect!["queue: there is no queue lba; choose lab, or add it with `rowen queue set lba`"]
        .assert_eq(&refused.unwrap_err());
    world.settle();
    assert_eq!(state(&world, JobId(1)), JobState::Starting, "it was there before");
    world.apply(Command::RemoveQueue("lab".into()));
    world.submit(job("lba", 1, 1, 0));
}

/// One thing that happens: what, and two numbers that say to whom and how.
type Event = (u8, u32, u32);

fn some_queue(name: u32, how: u32) -> QueueSpec {
    let guarantee = u64::from(how % 7);
    let limit = (how >> 3).is_multiple_of(3).then(|| guarantee + u64::from(how >> 5) % 9);
    let mut queue = queue(["a", "b", "c"][name as usize % 3], guarantee, limit);
    queue.weight = 1 + how % 4;
    queue.preempts = how & 1 == 1;
    queue.min_run_ms = u64::from(how >> 9) % 3 * 30_000;
    queue.lend_gpus = (how >> 11).is_multiple_of(4).then(|| u64::from(how >> 13) % 4);
    if (how >> 15).is_multiple_of(4) {
        queue.parent = ["b", "c", "a"][name as usize % 3].into();
    }
    queue
}

fn happen(world: &mut World, (what, a, b): Event) {
    world.now_ms += u64::from(b % 40_000);
    let jobs: Vec<JobId> = world.cluster.jobs().iter().map(|(id, _)| id).collect();
    let some = (!jobs.is_empty()).then(|| jobs[a as usize % jobs.len()]);
    let command = match what {
        0..=49 => {
            let queue = ["a", "b", "c"][b as usize % 3];
            let mut spec = job(queue, 1 + a % 3, 1 + (a >> 3) % 4, (a >> 6) % 3);
            spec.resources.cpus = [0, 0, 20][(a >> 9) as usize % 3];
            spec.time_limit_ms = u64::from(a >> 12) % 3 * 100_000;
            Command::SubmitJob(spec)
        }
        50..=69 => return world.agents(),
        70..=79 => return some.map_or((), |job| world.finish(job, 0)),
        80..=89 => Command::SetQueue(some_queue(a, b)),
        90..=94 => Command::RemoveQueue(["a", "b", "c"][a as usize % 3].into()),
        _ => Command::Tick,
    };
    let _refused_is_fine = world.try_apply(command);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Every decision is carried out (World::cycle asserts it), `why` says what the plan says, and
    /// of the gangs that leave none could be spared.
    #[test]
    fn queues_hold_in_random_worlds(
        nodes in 1u32..=4,
        events in prop::collection::vec((0u8..100, any::<u32>(), any::<u32>()), 4..40),
    ) {
        let mut world = world(&format!("pod p\nblock a: a[1-{nodes}] x4\n"), &[]);
        for number in 0..3 {
            let _one_may_lack_its_parent =
                world.try_apply(Command::SetQueue(some_queue(number, events[0].1 >> number)));
        }
        for event in events {
            happen(&mut world, event);
            let proposed = plan(&world.cluster);
            nobody_leaves_in_vain(&world, &proposed);
            world.cycle();
        }
        world.settle();
    }
}

fn nobody_leaves_in_vain(world: &World, plan: &Plan) {
    for (at, decision) in plan.decisions.iter().enumerate() {
        let Decision::Hold { job, places, victims, why } = decision else { continue };
        let earlier = Plan { based_on: 0, decisions: plan.decisions[..at].to_vec() };
        let apply = |cluster: &mut rowen_state::Cluster, plan| {
            let entry = rowen_state::Entry {
                at_ms: cluster.now_ms(),
                principal: "planner".into(),
                request: None,
                command: Command::CommitPlan(plan),
            };
            cluster.apply(cluster.applied() + 1, &entry).answer.unwrap().unwrap()
        };
        let mut before = world.cluster.clone();
        apply(&mut before, earlier);
        for victim in victims {
            let owner = before.allocations().get(*victim).unwrap().owner;
            assert!(matches!(owner, Owner::Gang { .. }), "there are no fillers");
            let victims: Vec<_> = victims.iter().copied().filter(|id| id != victim).collect();
            let (places, why) = (places.clone(), why.clone());
            let hold = match victims.is_empty() {
                false => Decision::Hold { job: *job, places, victims, why },
                true => Decision::Start { job: *job, places, why },
            };
            let plan = Plan { based_on: 0, decisions: vec![hold] };
            let reply = apply(&mut before.clone(), plan);
            assert_eq!(reply, Reply::Planned { accepted: 0, rejected: 1 }, "{victim} in vain");
        }
    }
}
