//! The cluster version of a new cluster, and the timing that it keeps.

use serde_json::json;

use super::group::{Group, NODE_LEASE_MS};
use crate::rig::{alone, wait};

#[test]
fn a_new_cluster_rises_by_itself_and_keeps_one_timing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::start(folder.path(), 3);
    wait("cluster version 2 and a timing", 20, || {
        let status = group.status();
        let risen = status["cluster_version"] == 2 && status["timing"]["since_index"] != 0;
        risen.then_some(())
    });
    let status = group.status();
    for replica in status["replicas"].as_array().unwrap() {
        assert_eq!(replica["reads_version"], 2, "{status:#}");
    }
    assert_eq!(status["timing"]["node_lease_ms"], NODE_LEASE_MS, "of the configuration");

    group.start_agents(1);
    let job = ["--name", "long", "-g", "1", "--set", "notice=1s"];
    let job = group.submit(&[&job[..], &["--", "sleep", "600"]].concat());
    group.wait_state(&job, "running");
    let said = group.refused(2, &["cluster", "set-timing", "--kill", "100ms"]);
    assert!(said.contains("timing.kill_ms: is 100; choose 500 to"), "{said}");
    let said = group.refused(2, &["cluster", "set-timing", "--heartbeat", "2s"]);
    assert!(said.contains("timing.heartbeat_ms: is 2000; choose 1 to a third"), "{said}");

    // Shorter, then longer: what runs goes on, and the margin of the old one holds for a while.
    let set = group.json(&["cluster", "set-timing", "--node-lease", "3s"]);
    assert_eq!((&set["node_lease_ms"], &set["kill_ms"]), (&json!(3000), &json!(500)));
    assert_eq!(group.status()["timing"]["settling"], true);
    wait("the leases of before to be over", 20, || {
        (group.status()["timing"]["settling"] == false).then_some(())
    });
    group.ok(&["cluster", "set-timing", "--node-lease", "6s", "--heartbeat", "500ms"]);
    std::thread::sleep(std::time::Duration::from_secs(7));
    group.wait_up(1);
    let shown = group.wait_state(&job, "running");
    assert_eq!(shown["attempt"], 1, "it was never started again: {shown:#}");
}
