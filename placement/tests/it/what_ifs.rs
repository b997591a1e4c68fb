//! What would come of changes, on a copy: the state itself stays as it is.

use expect_test::{Expect, expect};
use rowen_placement::{WhatIf, what_if};
use rowen_state::{Code, Command, JobId};

use crate::world::{World, filler, gang};

fn drain(world: &World, node: &str) -> Command {
    Command::DrainNode { node: world.node(node), reason: "what if".into() }
}

fn told(found: &WhatIf) -> String {
    let mut text = String::new();
    for job in &found.jobs {
        let new = if job.new { " (new)" } else { "" };
        let nodes = job.nodes.join(",");
        text += &format!(
            "job {}{new} {:?} after {} ms on [{nodes}] in [{}]: {}\n",
            job.id, job.becomes, job.after_ms, job.span, job.reason
        );
    }
    for filler in &found.fillers {
        let [before, after] = filler.instances;
        text +=
            &format!("filler {}: {before} to {after}, {} evicted\n", filler.name, filler.evicted);
    }
    let [before, after] = found.idle_gpus;
    text + &format!("idle {before} to {after}{}\n", if found.open { ", open" } else { "" })
}

fn check(world: &World, changes: Vec<Command>, expect: &Expect) {
    let before = world.cluster.state_hash();
    expect.assert_eq(&told(&what_if(&world.cluster, changes).unwrap()));
    assert_eq!(world.cluster.state_hash(), before, "the state is not touched");
}

/// Two blocks of two nodes; job 1 runs on the first node.
fn running() -> World {
    let mut world = World::new("block a: n[1-2] x4\nblock b: n[3-4] x4");
    world.submit(gang(1, 4, None));
    world.cycle();
    world.agents();
    world
}

#[test]
fn a_drained_gang_moves_after_its_notice() {
    let world = running();
    check(
        &world,
        vec![drain(&world, "n1")],
        &expect![[r#"
        job 1 Moves after 120000 ms on [n2] in [node n2]: n1 is drained; then free GPUs in node n2, the tightest fit: room for 0 more such workers is left there
        idle 12 to 8
    "#]],
    );
}

#[test]
fn a_gang_without_another_place_waits() {
    let mut world = running();
    world.submit(gang(3, 4, None));
    world.cycle();
    world.agents();
    check(
        &world,
        vec![drain(&world, "n1")],
        &expect![[r#"
        job 1 Requeues after 0 ms on [] in []: n1 is drained; then needs 4 GPUs inside one site; the nearest, site lab, can give 0 of 4 GPUs: gangs have 12, down, silent or out of service: 4
        idle 0 to 0
    "#]],
    );
}

#[test]
fn what_is_submitted_evicts_as_it_would() {
    let mut world = running();
    world.deploy(filler("chat", 1, 12));
    world.settle();
    world.agents();
    let big = Command::SubmitJob(gang(2, 4, None));
    check(
        &world,
        vec![drain(&world, "n4"), big],
        &expect![[r#"
        job 2 (new) Starts after 5000 ms on [n2,n3] in [pod pod-spine]: its GPUs are clear after 5000 ms (plan at index 15)
        filler chat: 12 to 0, 12 evicted
        idle 0 to 0
    "#]],
    );
}

#[test]
fn a_change_that_is_refused_is_the_answer() {
    let world = running();
    let refused = what_if(&world.cluster, vec![Command::CancelJob(JobId(99))]).unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
}
