//! Faulty links: a gang is kept from slow nodes where it can be, and told where it must.

use expect_test::{Expect, expect};
use rowen_placement::explain;
use rowen_state::{Command, Part, PartReport, Seer};
use rowen_topology::{FaultyLink, Level};

use crate::world::{World, gang};

/// Two blocks of two nodes with one leaf each, below one spine.
fn world() -> World {
    World::new("pod p0\nblock a: n[1-2] x4\nblock b: n[3-4] x4")
}

fn fault(world: &mut World, link: FaultyLink, left_milli: u16) {
    world.apply(Command::SetHealth(vec![PartReport {
        part: Part::Link(link),
        left_milli,
        mended: true,
        seer: Seer::Operator,
        reason: "a test".into(),
    }]));
    assert_eq!(world.cluster.verify(), []);
}

fn rail(node: &str, leaf: &str) -> FaultyLink {
    FaultyLink::Rail { node: node.into(), leaf: leaf.into() }
}

fn check(world: &mut World, expect: &Expect) {
    world.cycle();
    expect.assert_eq(&world.picture());
}

#[test]
fn of_two_blocks_the_one_at_full_speed_is_taken() {
    let mut world = world();
    fault(&mut world, rail("n1", "a-leaf"), 950);
    world.submit(gang(2, 4, None));
    check(
        &mut world,
        &expect![[r#"
        n1  ....
        n2  ....
        n3  1111
        n4  1111
    "#]],
    );
    // A single node does not use its rail.
    world.submit(gang(1, 4, None));
    check(
        &mut world,
        &expect![[r#"
        n1  2222
        n2  ....
        n3  1111
        n4  1111
    "#]],
    );
}

#[test]
fn who_requires_a_level_waits_rather_than_take_slow_nodes() {
    let mut world = world();
    fault(&mut world, rail("n1", "a-leaf"), 500);
    fault(&mut world, rail("n4", "b-leaf"), 0);
    let waits = world.submit(gang(2, 4, Some(Level::Block)));
    check(
        &mut world,
        &expect![[r#"
        n1  ....
        n2  ....
        n3  ....
        n4  ....
    "#]],
    );
    let told = explain(&world.cluster, waits);
    expect![[r#"
        job 1 waits: needs 2 × 4 GPUs inside one block; the nearest, block a-leaf, can give 4 of 8 GPUs: behind faulty links: 4
        faulty links
    "#]].assert_eq(&format!("{}\n{}\n", told.summary, told.binding_constraint));
    // Whoever does not mind is given them all the same.
    world.submit(gang(2, 4, None));
    check(
        &mut world,
        &expect![[r#"
        n1  2222
        n2  2222
        n3  ....
        n4  ....
    "#]],
    );
    // A new cable: the one that waits starts.
    fault(&mut world, rail("n4", "b-leaf"), 1_000);
    check(
        &mut world,
        &expect![[r#"
        n1  2222
        n2  2222
        n3  1111
        n4  1111
    "#]],
    );
}

#[test]
fn beyond_the_block_the_uplinks_count() {
    let mut world = world();
    fault(&mut world, FaultyLink::Uplink { leaf: "a-leaf".into(), spine: "p0-spine".into() }, 0);
    let wide = world.submit(gang(3, 4, Some(Level::Pod)));
    world.submit(gang(2, 4, Some(Level::Block)));
    check(
        &mut world,
        &expect![[r#"
        n1  2222
        n2  2222
        n3  ....
        n4  ....
    "#]],
    );
    let told = explain(&world.cluster, wide);
    expect![[r#"
        job 1 waits: needs 3 × 4 GPUs inside one pod; the nearest, pod p0-spine, can give 8 of 12 GPUs: gangs have 8
        GPUs that gangs have
    "#]].assert_eq(&format!("{}\n{}\n", told.summary, told.binding_constraint));
}
