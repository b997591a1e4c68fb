//! Dry runs and explanations.

use expect_test::expect;
use rowen_placement::{dry_run, explain};
use rowen_state::{Command, JobId};
use rowen_topology::Level;

use crate::world::{World, filler, gang};

fn busy() -> World {
    let mut world = World::new("pod p0\nblock b0: n[1-2] x8\nblock b1: n[3-4] x8\n");
    world.deploy(filler("chat", 2, 99));
    let mut spec = gang(2, 8, Some(Level::Block));
    spec.time_limit_ms = 1_200_000;
    world.submit(spec);
    world.settle();
    world.agents();
    world.settle();
    world
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would_happen() {
    let mut world = busy();
    let before = world.cluster.state_hash();
    let run = dry_run(&world.cluster, &gang(1, 8, None));
    expect![[r#"
        (
            false,
            true,
            1,
            4,
            Some(
                5000,
            ),
            "node n3: 4 fillers leave, the least lost of all that holds it, within 5000 ms",
            "node n3",
        )
    "#]]
    .assert_debug_eq(&(
        run.fits_now,
        run.fits_by_eviction,
        run.places.len(),
        run.victims.len(),
        run.start_in_ms,
        &run.reason,
        &run.span,
    ));
    assert_eq!(world.cluster.state_hash(), before);
    let job = world.submit(gang(1, 8, None));
    world.cycle();
    let hold = world.cluster.jobs().get(job).unwrap().hold.clone().unwrap();
    assert_eq!(hold.places, run.places, "the planner does what the dry run said");
    let run = dry_run(&world.cluster, &gang(3, 8, None));
    assert!(!run.fits_now && !run.fits_by_eviction && run.start_in_ms.is_none());
    expect!["needs 3 × 8 GPUs inside one site; the nearest, site lab, can give 8 of 24 GPUs: gangs have 24; starts by 1970-01-01 00:38:45 UTC at the latest, when job 1 reaches its time limit"].assert_eq(&run.reason);
}

#[test]
fn why_names_the_constraint_the_change_and_the_time() {
    let mut world = busy();
    let job = world.submit(gang(3, 8, Some(Level::Pod)));
    world.submit(gang(3, 8, Some(Level::Block)));
    world.settle();
    expect![[r#"
        Explanation {
            summary: "job 2 waits: needs 3 × 8 GPUs inside one pod; the nearest, pod p0-spine, can give 16 of 24 GPUs: gangs have 16; starts by 1970-01-01 00:38:45 UTC at the latest, when job 1 reaches its time limit",
            binding_constraint: "GPUs that gangs have",
            queue_position: 1,
            queue_length: 2,
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
                    nearest: "p0-spine",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Block,
                    considered: 2,
                    could_if_empty: 0,
                    nearest: "b1-leaf",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Nvlink,
                    considered: 4,
                    could_if_empty: 0,
                    nearest: "n3",
                    nearest_lacks_gpus: 16,
                },
                LevelReason {
                    level: Node,
                    considered: 4,
                    could_if_empty: 0,
                    nearest: "n3",
                    nearest_lacks_gpus: 16,
                },
            ],
            cheapest_change: "1 fewer worker, or the end of job 1 (by its time limit in 1325 s)",
            start_estimate_ms: Some(
                2325000,
            ),
        }
    "#]].assert_debug_eq(&explain(&world.cluster, job));
    expect![[r#"
        Explanation {
            summary: "job 3 waits: can never start: needs 3 × 8 GPUs inside one block; the largest, block b0-leaf, holds 2 of 3 workers when empty",
            binding_constraint: "the size and kind of the fabric",
            queue_position: 2,
            queue_length: 2,
            levels: [
                LevelReason {
                    level: Site,
                    considered: 1,
                    could_if_empty: 1,
                    nearest: "lab",
                    nearest_lacks_gpus: 16,
                },
                LevelReason {
                    level: Pod,
                    considered: 1,
                    could_if_empty: 1,
                    nearest: "p0-spine",
                    nearest_lacks_gpus: 16,
                },
                LevelReason {
                    level: Block,
                    considered: 2,
                    could_if_empty: 0,
                    nearest: "b1-leaf",
                    nearest_lacks_gpus: 16,
                },
                LevelReason {
                    level: Nvlink,
                    considered: 4,
                    could_if_empty: 0,
                    nearest: "n4",
                    nearest_lacks_gpus: 16,
                },
                LevelReason {
                    level: Node,
                    considered: 4,
                    could_if_empty: 0,
                    nearest: "n4",
                    nearest_lacks_gpus: 16,
                },
            ],
            cheapest_change: "pod instead of block, or 1 fewer worker",
            start_estimate_ms: None,
        }
    "#]].assert_debug_eq(&explain(&world.cluster, JobId(job.0 + 1)));
}

#[test]
fn why_suggests_a_coarser_level() {
    let mut world = World::new("pod p0\nblock b0: n[1-2] x8\nblock b1: n[3-4] x8\n");
    world.submit(gang(1, 8, None));
    world.settle();
    world.submit(gang(1, 8, None));
    world.settle();
    world.apply(Command::CordonNode { node: world.node("n3"), reason: "fan".into() });
    let job = world.submit(gang(2, 8, Some(Level::Nvlink)));
    expect![[r#"
        Explanation {
            summary: "job 3 waits: can never start: needs 2 × 8 GPUs inside one NVLink domain; the largest, NVLink domain n1, holds 1 of 2 workers when empty",
            binding_constraint: "the size and kind of the fabric",
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
                    nearest: "p0-spine",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Block,
                    considered: 2,
                    could_if_empty: 2,
                    nearest: "b1-leaf",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Nvlink,
                    considered: 4,
                    could_if_empty: 0,
                    nearest: "n4",
                    nearest_lacks_gpus: 8,
                },
                LevelReason {
                    level: Node,
                    considered: 4,
                    could_if_empty: 0,
                    nearest: "n4",
                    nearest_lacks_gpus: 8,
                },
            ],
            cheapest_change: "block instead of NVLink domain, or 1 fewer worker",
            start_estimate_ms: None,
        }
    "#]].assert_debug_eq(&explain(&world.cluster, job));
}

#[test]
fn why_of_a_job_that_does_not_wait() {
    let mut world = busy();
    expect!["job 1 runs"].assert_eq(&explain(&world.cluster, JobId(1)).summary);
    let job = world.submit(gang(1, 8, None));
    world.cycle();
    let held = explain(&world.cluster, job);
    expect!["job 2 has GPUs held for it: node n3: 4 fillers leave, the least lost of all that holds it, within 5000 ms"].assert_eq(&held.summary);
    assert_eq!(held.start_estimate_ms, Some(world.now_ms + 5_000));
    expect!["there is no job 77"].assert_eq(&explain(&world.cluster, JobId(77)).summary);
}
