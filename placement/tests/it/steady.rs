//! What must not happen over time: a log that fills by itself, plans without end, overflow.

use rowen_placement::{dry_run, explain, plan};
use rowen_state::{Command, Decision, JobSpec, JobState, Plan, TaskPhase};
use rowen_topology::Level;

use crate::world::{World, filler, gang};

/// What a job waits for does not change while fillers come and go: 50 jobs, 100 events.
#[test]
fn reasons_stand_still_while_fillers_come_and_go() {
    let mut world = World::new("pod p0\nblock b0: n[1-8] x8\nblock b1: n[9-16] x8\n");
    world.submit(gang(8, 8, Some(Level::Block)));
    world.settle();
    world.agents();
    let specs: Vec<_> = (0..6).map(some_filler).collect();
    for spec in &specs {
        world.deploy(spec.clone());
    }
    world.settle();
    world.agents();
    for job in 0..50 {
        world.submit(too_large(job));
    }
    let told = waits(&world.cycle());
    assert_eq!(told, 50, "each job is told once");
    world.settle();

    let (mut numbers, mut started) = (1u64, 0);
    for event in 0..100 {
        numbers = numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(event);
        let (what, which) = (numbers >> 33, (numbers >> 40) as usize % specs.len());
        happen(&mut world, what, &specs[which]);
        for _ in 0..8 {
            let plan = world.cycle();
            assert_eq!(waits(&plan), 0, "event {event}: {plan:#?}\n{}", world.picture());
            started += plan.decisions.len();
            if plan.decisions.is_empty() {
                break;
            }
        }
    }
    assert!(started > 100, "the fillers hardly moved: {started} decisions");
}

fn waits(plan: &Plan) -> usize {
    let waits = |decision: &&Decision| matches!(decision, Decision::Wait { .. });
    plan.decisions.iter().filter(waits).count()
}

fn some_filler(number: usize) -> rowen_state::FillerSpec {
    let mut spec = filler(&format!("f{number}"), [1, 2, 3, 4, 8, 1][number], 20);
    spec.resources.cpus = [0, 16, 0, 40, 100, 60][number];
    spec.resources.memory_mib = [0, 0, 100, 0, 200, 300][number] << 10;
    spec.value_micros = number as u64 * 1_000_000;
    spec
}

/// Shapes that half of the fabric does not hold, whoever leaves.
fn too_large(job: u32) -> JobSpec {
    let more = job / 8;
    let level = [None, Some(Level::Pod), Some(Level::Block)][job as usize % 3];
    let mut spec = match job % 8 {
        0 => gang(9 + more, 8, level),
        1 => gang(17 + more, 4, level),
        2 => gang(17 + more, 3, level),
        3 => gang(65 + more, 1, level),
        4 => gang(1, 16, level),
        _ => gang(9 + more, 1, level),
    };
    match job % 8 {
        5 => spec.resources.cpus = 100, // of 128: one a node
        6 => spec.resources.memory_mib = 900 << 10,
        7 => spec.resources.gpu_model = Some("B200".into()),
        _ => {}
    }
    spec
}

fn happen(world: &mut World, what: u64, spec: &rowen_state::FillerSpec) {
    world.now_ms += what % 2_000;
    let id = world.cluster.filler_named(&spec.name).map(|filler| filler.id);
    match (what % 7, id) {
        (0, Some(id)) => drop(world.apply(Command::DrainFiller(id))),
        (1, Some(id)) => drop(world.apply(Command::RemoveFiller(id))),
        (2, _) => {
            let mut other = spec.clone();
            other.command.push(what.to_string());
            let _refused_while_removed = world.try_apply(Command::DeployFiller(other));
        }
        (3, _) => {
            let reports = world.task_reports(|allocation, rank| {
                let fails = allocation.id.0 % 3 == what % 3 && allocation.tasks.len() == 1;
                (fails && allocation.tasks[rank].phase.live())
                    .then_some(TaskPhase::Exited { code: 1 })
            });
            world.apply(Command::Report(reports));
        }
        (4, _) => {
            let _refused_while_removed = world.try_apply(Command::DeployFiller(spec.clone()));
        }
        _ => world.agents(),
    }
}

/// A reason longer than the state keeps would differ from what is kept for ever.
#[test]
fn the_longest_names_do_not_make_plans_without_end() {
    let long = |letter: &str| letter.repeat(120);
    let blocks: Vec<String> =
        (0..9).map(|at| format!("block {}{at}: n{at} x4 {}{at}\n", long("b"), long("M"))).collect();
    let mut world = World::new(&format!("pod {}\n{}", long("p"), blocks.concat()));
    let mut unknown = gang(1, 1, None);
    unknown.resources.gpu_model = Some(long("X"));
    world.submit(unknown.clone());
    let mut known = gang(16_384, 4, Some(Level::Block));
    known.resources.gpu_model = Some(format!("{}1", long("M")));
    world.submit(known);
    world.submit(gang(1, 5, Some(Level::Nvlink)));
    let mut nowhere = filler("chat", 1, 1);
    nowhere.resources = unknown.resources;
    world.deploy(nowhere);
    world.settle();
    let reasons = world.cluster.queue().map(|job| job.reason.len());
    assert!(reasons.max().unwrap() > 400, "the names were not long enough to matter");
}

/// Every limit of a spec at once, on the largest nodes, after the longest warm-up.
#[test]
fn the_largest_values_do_not_overflow() {
    let mut world = World::new("pod p\nblock a: a[1-32] x64\nblock b: b[1-32] x64\n");
    let mut dear = filler("dear", 64, 131_072);
    (dear.value_micros, dear.notice_ms) = (1_000_000_000_000, 3_600_000);
    (dear.warm_up_ms, dear.resources.cpus) = (86_400_000, 1_024);
    let mut vast = filler("vast", 1, 131_072);
    (vast.resources.cpus, vast.resources.memory_mib) = (65_536, 1 << 40);
    world.deploy(dear);
    world.deploy(vast);
    world.settle();
    world.agents();
    world.now_ms += 86_400_000;
    world.apply(Command::Tick);

    let mut largest = gang(16_384, 64, None);
    (largest.resources.cpus, largest.resources.memory_mib) = (65_536, 1 << 40);
    (largest.priority, largest.notice_ms) = (1_000, 3_600_000);
    largest.time_limit_ms = 366 * 86_400_000;
    let mut bare = gang(16_384, 64, Some(Level::Site));
    bare.time_limit_ms = largest.time_limit_ms;
    let all = gang(64, 64, None);
    let jobs = [largest, bare, all].map(|spec| {
        dry_run(&world.cluster, &spec);
        world.submit(spec)
    });
    world.settle();
    for job in jobs {
        explain(&world.cluster, job);
    }
    let holding = world.cluster.jobs().get(jobs[2]).unwrap();
    assert_eq!(holding.state, JobState::Holding);
    assert_eq!(holding.hold.as_ref().unwrap().victims.len(), 64);
    world.now_ms += 3_600_000;
    world.agents();
    world.settle();
    assert_eq!(world.cluster.jobs().get(jobs[2]).unwrap().state, JobState::Starting);
    assert_eq!(plan(&world.cluster).decisions, []);
}
