//! Plans of small drawn worlds, as pictures and sentences.

use expect_test::{Expect, expect};
use rowen_state::{Command, GpuMask, JobState};
use rowen_topology::Level;

use crate::world::{World, filler, gang};

/// The demo's fabric: two blocks of 8 nodes × 8 GPUs in one pod.
const DEMO: &str = "pod p0\nblock b0: n[1-8] x8\nblock b1: n[9-16] x8\n";

fn check(actual: String, expect: Expect) {
    expect.assert_eq(&actual);
}

/// The demo's fabric, full of fillers of 2 GPUs and of 1.
fn full() -> World {
    let mut world = World::new(DEMO);
    world.deploy(filler("chat", 2, 50));
    world.deploy(filler("embed", 1, 100));
    world.settle();
    world.agents();
    world.settle();
    world
}

#[test]
fn fillers_take_every_idle_gpu() {
    check(
        full().picture(),
        expect![[r#"
        n1  cccccccc
        n2  cccccccc
        n3  cccccccc
        n4  cccccccc
        n5  cccccccc
        n6  cccccccc
        n7  cccccccc
        n8  cccccccc
        n9  cccccccc
        n10 cccccccc
        n11 cccccccc
        n12 cccccccc
        n13 cccceeee
        n14 eeeeeeee
        n15 eeeeeeee
        n16 eeeeeeee
    "#]],
    );
}

#[test]
fn a_gang_evicts_only_what_is_in_its_way() {
    let mut world = full();
    let job = world.submit(gang(8, 8, Some(Level::Block)));
    check(
        world.plan(),
        expect![[r#"
        hold 1 on n1:{0, 1, 2, 3, 4, 5, 6, 7} n2:{0, 1, 2, 3, 4, 5, 6, 7} n3:{0, 1, 2, 3, 4, 5, 6, 7} n4:{0, 1, 2, 3, 4, 5, 6, 7} n5:{0, 1, 2, 3, 4, 5, 6, 7} n6:{0, 1, 2, 3, 4, 5, 6, 7} n7:{0, 1, 2, 3, 4, 5, 6, 7} n8:{0, 1, 2, 3, 4, 5, 6, 7}, evicting [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32] (block b0-leaf: 32 fillers leave, the least lost of all that holds it, within 5000 ms)
    "#]],
    );
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        n1  CCCCCCCC
        n2  CCCCCCCC
        n3  CCCCCCCC
        n4  CCCCCCCC
        n5  CCCCCCCC
        n6  CCCCCCCC
        n7  CCCCCCCC
        n8  CCCCCCCC
        n9  cccccccc
        n10 cccccccc
        n11 cccccccc
        n12 cccccccc
        n13 cccceeee
        n14 eeeeeeee
        n15 eeeeeeee
        n16 eeeeeeee
    "#]],
    );
    world.agents();
    assert_eq!(world.cluster.jobs().get(job).unwrap().state, JobState::Starting);
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        n1  11111111
        n2  11111111
        n3  11111111
        n4  11111111
        n5  11111111
        n6  11111111
        n7  11111111
        n8  11111111
        n9  cccccccc
        n10 cccccccc
        n11 cccccccc
        n12 cccccccc
        n13 cccceeee
        n14 eeeeeeee
        n15 eeeeeeee
        n16 eeeeeeee
    "#]],
    );
}

#[test]
fn a_gang_too_large_for_what_is_left_waits_with_a_number() {
    let mut world = full();
    world.submit(gang(8, 8, Some(Level::Block)));
    world.settle();
    world.agents();
    world.submit(gang(12, 8, Some(Level::Pod)));
    check(
        world.plan(),
        expect![[r#"
        wait 2: needs 12 × 8 GPUs inside one pod; the nearest, pod p0-spine, can give 64 of 96 GPUs: gangs have 64
        unfilled 1: no node has 2 GPUs free
    "#]],
    );
    world.settle();
    assert_eq!(world.plan(), "", "the same reason is not given twice");
}

#[test]
fn a_killed_node_sends_its_gang_elsewhere() {
    let mut world = full();
    let job = world.submit(gang(8, 8, Some(Level::Block)));
    world.settle();
    world.agents();
    world.agents();
    world.settle();
    let (node, came) = world.came("n3");
    world.apply(Command::NodeSilent { node, came });
    check(
        world.picture(),
        expect![[r#"
            n1  ////////
            n2  ////////
            n3  ////////
            n4  ////////
            n5  ////////
            n6  ////////
            n7  ////////
            n8  ////////
            n9  cccccccc
            n10 cccccccc
            n11 cccccccc
            n12 cccccccc
            n13 cccceeee
            n14 eeeeeeee
            n15 eeeeeeee
            n16 eeeeeeee
        "#]],
    );
    world.apply(Command::NodeLost { node, came });
    world.agents();
    check(
        world.plan(),
        expect![[r#"
        hold 1 on n9:{0, 1, 2, 3, 4, 5, 6, 7} n10:{0, 1, 2, 3, 4, 5, 6, 7} n11:{0, 1, 2, 3, 4, 5, 6, 7} n12:{0, 1, 2, 3, 4, 5, 6, 7} n13:{0, 1, 2, 3, 4, 5, 6, 7} n14:{0, 1, 2, 3, 4, 5, 6, 7} n15:{0, 1, 2, 3, 4, 5, 6, 7} n16:{0, 1, 2, 3, 4, 5, 6, 7}, evicting [33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78] (block b1-leaf: 46 fillers leave, the least lost of all that holds it, within 5000 ms)
        instance of 1 on n1:{0, 1}
        instance of 1 on n1:{2, 3}
        instance of 1 on n1:{4, 5}
        instance of 1 on n1:{6, 7}
        instance of 1 on n2:{0, 1}
        instance of 1 on n2:{2, 3}
        instance of 1 on n2:{4, 5}
        instance of 1 on n2:{6, 7}
        instance of 1 on n4:{0, 1}
        instance of 1 on n4:{2, 3}
        instance of 1 on n4:{4, 5}
        instance of 1 on n4:{6, 7}
        instance of 1 on n5:{0, 1}
        instance of 1 on n5:{2, 3}
        instance of 1 on n5:{4, 5}
        instance of 1 on n5:{6, 7}
        instance of 1 on n6:{0, 1}
        instance of 1 on n6:{2, 3}
        instance of 1 on n6:{4, 5}
        instance of 1 on n6:{6, 7}
        instance of 1 on n7:{0, 1}
        instance of 1 on n7:{2, 3}
        instance of 1 on n7:{4, 5}
        instance of 1 on n7:{6, 7}
        instance of 1 on n8:{0, 1}
        instance of 1 on n8:{2, 3}
        instance of 1 on n8:{4, 5}
        instance of 1 on n8:{6, 7}
    "#]],
    );
    world.settle();
    world.agents();
    world.agents();
    world.settle();
    assert_eq!(world.cluster.jobs().get(job).unwrap().state, JobState::Running);
    check(
        world.picture(),
        expect![[r#"
            n1  cccccccc
            n2  cccccccc
            n3  xxxxxxxx
            n4  cccccccc
            n5  cccccccc
            n6  cccccccc
            n7  cccccccc
            n8  cccccccc
            n9  11111111
            n10 11111111
            n11 11111111
            n12 11111111
            n13 11111111
            n14 11111111
            n15 11111111
            n16 11111111
        "#]],
    );
}

#[test]
fn fragments_are_filled_first_and_whole_blocks_last() {
    let mut world = World::new("pod p\nblock a: a[1-3] x4\nblock b: b[1-2] x4\n");
    world.submit(gang(1, 3, None));
    world.submit(gang(1, 2, None));
    world.settle();
    let mut small = filler("small", 1, 5);
    small.min_instances = 1;
    world.deploy(small);
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  111s
        a2  22ss
        a3  ss..
        b1  ....
        b2  ....
    "#]],
    );
}

#[test]
fn gangs_go_where_they_break_up_least() {
    let mut world = World::new("pod p\nblock a: a[1-3] x8\nblock b: b[1-2] x8\n");
    for (workers, gpus) in [(1, 2), (1, 4), (2, 8), (3, 1), (1, 8)] {
        world.submit(gang(workers, gpus, None));
    }
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  112222..
        a2  444.....
        a3  55555555
        b1  33333333
        b2  33333333
    "#]],
    );
}

#[test]
fn a_gang_over_two_blocks_takes_one_whole() {
    let mut world =
        World::new("pod p\nblock a: a[1-2] x2\nblock b: b[1-4] x2\nblock c: c[1-3] x2\n");
    world.submit(gang(5, 2, Some(Level::Pod)));
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  11
        a2  ..
        b1  11
        b2  11
        b3  11
        b4  11
        c1  ..
        c2  ..
        c3  ..
    "#]],
    );
}

#[test]
fn preferred_is_tried_first_and_required_holds() {
    let mut world = World::new("pod p\nblock a: a[1-2] x4\nblock b: b[1-3] x4\n");
    let mut spec = gang(3, 4, Some(Level::Pod));
    spec.preferred = Some(Level::Block);
    world.submit(spec.clone());
    world.submit(gang(1, 4, None));
    world.settle();
    world.submit(gang(2, 4, Some(Level::Block)));
    check(
        world.plan(),
        expect![[r#"
        wait 3: needs 2 × 4 GPUs inside one block; the nearest, block a-leaf, can give 4 of 8 GPUs: gangs have 4
    "#]],
    );
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  2222
        a2  ....
        b1  1111
        b2  1111
        b3  1111
    "#]],
    );
}

#[test]
fn the_cheapest_fillers_leave() {
    let mut world = World::new("pod p\nblock a: a[1-2] x4\n");
    let mut dear = filler("dear", 2, 2);
    dear.value_micros = 9_000_000;
    world.deploy(dear);
    world.settle();
    world.deploy(filler("plain", 1, 9));
    world.settle();
    world.submit(gang(1, 2, None));
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  dddd
        a2  PPpp
    "#]],
    );
}

#[test]
fn one_large_victim_instead_of_several_small_ones() {
    let mut world = World::new("pod p\nblock a: a1 x4\nblock b: b1 x4\n");
    world.deploy(filler("wide", 4, 1));
    world.settle();
    world.deploy(filler("narrow", 1, 4));
    world.settle();
    world.submit(gang(1, 4, None));
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  WWWW
        b1  nnnn
    "#]],
    );
}

#[test]
fn a_model_cores_and_memory_are_respected() {
    let mut world = World::new("pod p\nblock a: a[1-2] x4 H100 + b[1-2] x4 H200\n");
    let mut spec = gang(3, 2, None);
    spec.resources.gpu_model = Some("H200".into());
    world.submit(spec);
    let mut spec = gang(2, 1, None);
    spec.resources.cpus = 50; // of 64 on a node
    world.submit(spec);
    let mut spec = gang(1, 1, None);
    spec.resources.memory_mib = 1 << 20;
    world.submit(spec);
    let mut spec = gang(1, 1, None);
    spec.resources.gpu_model = Some("B200".into());
    world.submit(spec);
    world.submit(gang(1, 16, None));
    world.submit(gang(5, 4, Some(Level::Site)));
    check(
        world.plan(),
        expect![[r#"
        start 1 on b1:{0, 1} b1:{2, 3} b2:{0, 1} (free GPUs in block a-leaf, the tightest fit: room for 1 more such workers is left there)
        start 2 on a1:{0} b2:{2} (free GPUs in block a-leaf, the tightest fit: room for 1 more such workers is left there)
        wait 3: can never start: no node has 1 GPU with 0 cores and 1048576 MiB of memory
        wait 4: can never start: no node has the GPU model asked for; there are H100, H200
        wait 5: can never start: no node has 16 GPUs, the largest has 4
        wait 6: can never start: needs 5 × 4 GPUs inside one site; the largest, site lab, holds 4 of 5 workers when empty
    "#]],
    );
}

#[test]
fn what_comes_free_is_kept_for_the_gang_that_is_next() {
    let mut world = World::new("pod p\nblock a: a[1-2] x4\n");
    let chat = world.deploy(filler("chat", 4, 1));
    world.settle();
    world.apply(Command::DrainFiller(chat));
    world.deploy(filler("embed", 1, 8));
    world.submit(gang(2, 4, None));
    world.submit(gang(1, 4, None));
    check(
        world.plan(),
        expect![[r#"
            wait 1: needs 2 × 4 GPUs inside one site: block a-leaf holds it once what already ends there has ended
            wait 2: needs 4 GPUs inside one site; the nearest, site lab, can give 0 of 4 GPUs: kept for a gang ahead: 8
            unfilled 1: is being drained
            unfilled 2: no node has 1 GPU free
        "#]],
    );
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  CCCC
        a2  ....
    "#]],
    );
    world.agents();
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  1111
        a2  1111
    "#]],
    );
}

#[test]
fn sick_gpus_are_no_reason_to_evict() {
    let mut world = World::new("pod p\nblock a: a1 x2\n");
    world.deploy(filler("chat", 2, 1));
    world.settle();
    let node = world.node("a1");
    world.node_up(node, GpuMask::one(0));
    world.submit(gang(1, 2, None));
    check(
        world.plan(),
        expect![[r#"
        wait 1: needs 2 GPUs inside one site; the nearest, site lab, can give 0 of 2 GPUs: down, silent or out of service: 1, in pieces too small: 1
    "#]],
    );
}

#[test]
fn a_smaller_gang_goes_ahead_of_one_that_cannot_run_yet() {
    let mut world = World::new("pod p\nblock a: a[1-2] x4\n");
    world.submit(gang(1, 4, None));
    world.settle();
    let mut first = gang(2, 4, None);
    first.priority = 9;
    world.submit(first);
    world.submit(gang(1, 2, None));
    check(
        world.plan(),
        expect![[r#"
        wait 2: needs 2 × 4 GPUs inside one site; the nearest, site lab, can give 4 of 8 GPUs: gangs have 4
        start 3 on a2:{0, 1} (free GPUs in node a2, the tightest fit: room for 1 more such workers is left there)
    "#]],
    );
}

#[test]
fn a_gang_needs_no_more_victims_than_its_workers_need() {
    let mut world = World::new("pod p\nblock a: a[1-2] x8\n");
    world.submit(gang(1, 5, None));
    world.deploy(filler("one", 1, 3));
    world.settle();
    world.deploy(filler("four", 4, 2));
    world.settle();
    world.submit(gang(3, 2, Some(Level::Block)));
    check(
        world.plan(),
        expect![[r#"
        hold 2 on a2:{0, 1} a2:{2, 3} a2:{4, 5}, evicting [5, 6] (node a2: 2 fillers leave, the least lost of all that holds it, within 5000 ms)
    "#]],
    );
}

/// A worker of few GPUs may clear many fillers for their cores.
#[test]
fn fillers_leave_for_cores_alone() {
    let mut world = World::new("pod p\nblock a: a1 x4\n");
    let mut chat = filler("chat", 1, 4);
    chat.resources.cpus = 16;
    world.deploy(chat);
    world.settle();
    let mut spec = gang(1, 1, None);
    spec.resources.cpus = 60; // of 64
    let job = world.submit(spec);
    check(
        world.plan(),
        expect![[r#"
        hold 1 on a1:{0}, evicting [1, 2, 3, 4] (node a1: 4 fillers leave, the least lost of all that holds it, within 5000 ms)
    "#]],
    );
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  CCCC
    "#]],
    );
    world.agents();
    world.settle();
    assert_eq!(world.cluster.jobs().get(job).unwrap().state, JobState::Starting);
    check(
        world.picture(),
        expect![[r#"
        a1  1...
    "#]],
    );
}

/// No more leave for cores than it takes, one whose GPU is sick among them.
#[test]
fn a_filler_on_a_sick_gpu_leaves_for_its_cores() {
    let mut world = World::new("pod p\nblock a: a1 x4\n");
    let mut chat = filler("chat", 1, 1);
    chat.resources.cpus = 50;
    world.deploy(chat);
    world.deploy(filler("none", 1, 2));
    world.settle();
    let node = world.node("a1");
    world.node_up(node, GpuMask::first(4).without(GpuMask::one(0)));
    let mut spec = gang(1, 1, None);
    spec.resources.cpus = 60;
    world.submit(spec);
    check(
        world.plan(),
        expect![[r#"
            wait 1: needs 1 GPU inside one site: node a1 holds it once what already ends there has ended
        "#]],
    );
    world.settle();
    world.agents();
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  xnn1
    "#]],
    );
}

/// While fillers drain, more cores are claimed than there are; who claims none may start.
#[test]
fn a_claim_of_nothing_fits_an_over_claimed_node() {
    let mut world = World::new("pod p\nblock a: a1 x8\n");
    let mut chat = filler("chat", 1, 4);
    chat.resources.cpus = 32;
    world.deploy(chat);
    world.settle();
    let mut spec = gang(1, 1, None);
    spec.resources.cpus = 120; // of 128
    world.submit(spec.clone());
    world.settle();
    world.submit(gang(1, 2, None));
    spec.resources.cpus = 1;
    world.submit(spec);
    check(
        world.plan(),
        expect![[r#"
        start 2 on a1:{4, 5} (free GPUs in node a1, the tightest fit: room for 1 more such workers is left there)
        wait 3: needs 1 GPU inside one site: node a1 holds it once what already ends there has ended
    "#]],
    );
    world.settle();
    check(
        world.picture(),
        expect![[r#"
        a1  CCCC22..
    "#]],
    );
}

fn thousand_nodes() -> World {
    let blocks: Vec<String> = (0..32)
        .map(|block| {
            let (pod, first) = (block / 8, block * 32);
            format!("pod p{pod}\nblock b{block}: n[{first}-{}] x8\n", first + 31)
        })
        .collect();
    World::new(&blocks.concat())
}

#[expect(clippy::print_stdout, reason = "figures for whoever asks with --nocapture")]
fn time(what: &str, world: &World) {
    #[expect(clippy::disallowed_methods, reason = "a test may look at a clock")]
    let start = std::time::Instant::now();
    let plan = rowen_placement::plan(&world.cluster);
    println!("{what}: {} decisions in {:?}", plan.decisions.len(), start.elapsed());
}

fn submit_a_hundred(world: &mut World) {
    for job in 0..100 {
        let level = [None, Some(Level::Block), Some(Level::Pod)][job % 3];
        world.submit(gang(1 + (job as u32 % 40), [8, 4, 1][job % 3], level));
    }
}

/// Prints what a cycle costs; asserts nothing, for machines differ.
#[test]
fn a_cycle_over_a_thousand_nodes() {
    let mut world = thousand_nodes();
    world.deploy(filler("chat", 2, 2_000));
    world.deploy(filler("embed", 1, 2_000));
    time("filling 1,024 nodes", &world);
    world.cycle();
    time("nothing to do", &world);
    submit_a_hundred(&mut world);
    time("100 queued gangs, all but a few by eviction", &world);
    world.cycle();
    for _ in 0..100 {
        world.submit(gang(33, 8, Some(Level::Block)));
        world.submit(gang(300, 8, Some(Level::Pod)));
    }
    time("200 more of two shapes that cannot fit", &world);
}

/// Likewise where no two blocks cost the same: 16 fillers that differ in all that counts.
#[test]
fn a_cycle_over_fillers_of_many_kinds() {
    let mut world = thousand_nodes();
    for kind in 0..16 {
        let mut spec = filler(&format!("f{kind}"), [1, 2, 4][kind % 3], 300);
        spec.value_micros = 100_000 + kind as u64 * 37_000;
        spec.notice_ms = 2_000 + kind as u64 * 700;
        spec.resources.cpus = [0, 8, 40][kind / 2 % 3];
        world.deploy(spec);
        world.settle();
        world.now_ms += 1_300;
    }
    submit_a_hundred(&mut world);
    time("100 queued gangs, fillers of 16 kinds", &world);
}
