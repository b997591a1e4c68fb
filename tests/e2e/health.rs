//! A GPU falls ill under a gang, and what would come of a drain: real agents, real processes.

use serde_json::Value;

use crate::rig::{Dev, alone, text, wait};

#[test]
fn a_gang_leaves_a_gpu_that_fell_ill() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(&folder.path().join("data"), 2);
    wait("cluster version 2", 20, || (dev.json(&["status"])["cluster_version"] == 2).then_some(()));
    let gang = ["--name", "train", "-g", "8", "--set", "notice=1s", "--", "sleep", "600"];
    let id = dev.submit(0, &gang);
    let node = node_of(&dev.wait_state(&id, "running"));

    let before = dev.json(&["status"])["state_hash"].clone();
    let found = dev.json(&["whatif", "--drain", &node]);
    let job = &found["jobs"][0];
    assert_eq!((&job["becomes"], &job["after_ms"]), (&"moves".into(), &1_000.into()), "{found:#}");
    assert_ne!(job["nodes"][0], Value::from(node.clone()), "{found:#}");
    assert_eq!(dev.json(&["status"])["state_hash"], before, "nothing was changed");
    let refused = dev.rowen(&["whatif", "--drain", "rack-99"]);
    assert!(text(&refused.stderr).contains("there is no node, rack or domain rack-99"));

    let faults = dev.data.join("nodes").join(&node).join("gpu-faults");
    std::fs::write(&faults, "3 XID 79\n").unwrap();
    wait("the gang to run on the other node", 30, || {
        let shown = dev.json(&["job", "show", &id]);
        (shown["state"] == "running" && node_of(&shown) != node).then_some(())
    });
    let health = dev.json(&["fabric", "health", "list"]);
    let part = &health["parts"][0];
    assert_eq!(part["part"], Value::from(format!("gpu:{node}/3")), "{health:#}");
    assert_eq!((&part["seen_by"], &part["reason"]), (&"agent".into(), &"XID 79".into()));

    std::fs::remove_file(&faults).unwrap();
    wait("it to be better, but not trusted yet", 20, || {
        let health = dev.json(&["fabric", "health", "list"]);
        (health["parts"][0]["state"] == "mending").then_some(())
    });
    let part = format!("gpu:{node}/3");
    let mended = dev.rowen(&["fabric", "health", "set", "up", &part, "--mended"]);
    assert!(mended.status.success(), "{}", text(&mended.stderr));
    assert_eq!(dev.json(&["fabric", "health", "list"])["parts"].as_array().unwrap().len(), 0);
    dev.stop();
}

fn node_of(job: &Value) -> String {
    job["tasks"][0]["node"].as_str().unwrap_or_default().to_owned()
}
