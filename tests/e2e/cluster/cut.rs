//! Nodes that the control plane does not hear, each in another way: no GPU and no job ever has two
//! owners' processes, by the kernel's locks that these hold.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::freeze::{lines, start_of, submit};
use super::group::Group;
use super::proxy::Proxy;
use crate::rig::{alone, lives, processes_of, wait};

#[test]
fn a_node_that_is_not_heard_ends_its_tasks_before_others_begin() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::start(folder.path(), 1);
    let proxies: Vec<Proxy> = (0..5).map(|_| Proxy::start(&group.addrs[0])).collect();
    group.start_agents_at(5, |node| proxies[node as usize - 1].addr.clone());
    let journal = group.folder.join("journal");

    // Four nodes have a job each, one is free.
    let mut jobs: BTreeMap<usize, (String, u32)> = BTreeMap::new();
    for name in ["one", "two", "three", "four"] {
        let id = submit(&group, name, &journal);
        let node = group.wait_state(&id, "running")["nodes"][0].as_str().unwrap().to_owned();
        let start = wait("the job to start", 20, || start_of(&journal, &id, 1));
        let pid = start["who"]["pid"].as_u64().unwrap() as u32;
        jobs.insert(node[1..].parse::<usize>().unwrap(), (id, pid));
    }
    let nodes: Vec<usize> = jobs.keys().copied().collect();
    assert_eq!(nodes.len(), 4, "{jobs:?}");

    let paused = agent_of(&group, nodes[0]);
    kill(paused, Signal::SIGSTOP).unwrap();
    proxies[nodes[1] - 1].cut(true, true);
    proxies[nodes[2] - 1].cut(true, false);
    proxies[nodes[3] - 1].cut(false, true);
    for (node, (_, pid)) in &jobs {
        // By itself: nobody reaches it. That it was in time is what the locks below show.
        wait(&format!("the task on n{node} to end"), 20, || (!lives(*pid)).then_some(()));
    }
    // The free node takes the first of them; its worker looks for the first attempt's locks.
    wait("a second attempt", 30, || jobs.values().find_map(|(id, _)| start_of(&journal, id, 2)));

    // What was under way arrives now: beats, acknowledgements and orders of long ago.
    kill(paused, Signal::SIGCONT).unwrap();
    proxies.iter().for_each(|proxy| proxy.cut(false, false));
    for (id, _) in jobs.values() {
        let job = group.wait_state(id, "running");
        assert!(job["attempt"].as_u64() >= Some(2), "{job:#}");
        let attempt = job["attempt"].as_u64().unwrap();
        wait("the next attempt to start", 20, || start_of(&journal, id, attempt));
    }
    let clashes: Vec<Value> =
        lines(&journal).into_iter().filter(|line| line["what"] == "clash").collect();
    assert!(clashes.is_empty(), "{clashes:#?}");
    let status = group.json(&["status"]);
    assert_eq!(status["violations"], json!([]), "{status:#}");
}

fn agent_of(group: &Group, node: usize) -> Pid {
    let processes = processes_of(&group.node_dir(&format!("n{node}")));
    let agent = processes.iter().find(|process| process.contains(" agent ")).unwrap();
    Pid::from_raw(agent.split_once(' ').unwrap().0.parse().unwrap())
}

#[test]
fn a_launch_that_fails_by_its_node_is_told_in_the_jobs_story() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::start(folder.path(), 1);
    group.start_agents(1);
    let (tasks, aside) = (group.node_dir("n1").join("tasks"), group.node_dir("n1").join("aside"));
    fs::rename(&tasks, &aside).unwrap();
    fs::write(&tasks, "").unwrap();
    let id = group.submit(&["--name", "unlucky", "-g", "8", "--", "sleep", "600"]);
    wait("the story to tell it", 20, || {
        let story = group.json(&["job", "show", &id]).to_string();
        story
            .contains("worker 0 on n1 was lost: it could not be launched: task folder")
            .then_some(())
    });
    fs::remove_file(&tasks).unwrap();
    fs::rename(&aside, &tasks).unwrap();
    let job = group.wait_state(&id, "running");
    let attempt = job["attempt"].as_u64().unwrap();
    assert!((2..8).contains(&attempt), "lost, with growing pauses: {job:#}");
    assert!(job["failures"].as_u64().unwrap_or(0) == 0, "{job:#}");
}
