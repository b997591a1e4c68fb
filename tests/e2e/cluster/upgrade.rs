//! A rolling upgrade, two real builds side by side under load. Runs where `ROWEN_OLD` names the older
//! binary; `cargo xtask upgrade` builds one and does so. `ROWEN_UPGRADE_REPORT`: where the table goes.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::group::Group;
use crate::rig::{ROWEN, alone, text, wait};

/// How long the builds share the cluster in each mix.
const MIX: Duration = Duration::from_secs(4);

#[test]
fn replicas_of_two_builds_share_a_cluster() {
    let Some(old) = std::env::var_os("ROWEN_OLD").map(PathBuf::from) else { return };
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let mut group = Group::start_as(old.clone(), 20_000, folder.path(), 3);
    group.start_agents(2);
    let long = group.submit(&["--name", "long", "-g", "1", "--", "sleep", "600"]);
    group.wait_state(&long, "running");
    let mut figures = Vec::new();

    let stop = AtomicBool::new(false);
    let addrs = group.addrs.join(",");
    let acknowledged = std::thread::scope(|scope| {
        let load = scope.spawn(|| submit_until(&stop, &old, &addrs));
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            replace_all(&mut group, &old, &mut figures);
        }));
        stop.store(true, Ordering::Relaxed);
        let acknowledged = load.join().unwrap();
        steps.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        acknowledged
    });

    // Agents of both builds are served; what ran through it all was never started again.
    group.end_agent("n2", Signal::SIGKILL);
    group.start_agent("n2");
    group.wait_up(2);
    for _ in 0..2 {
        let wide = ["--name", "wide", "-n", "2", "-g", "7", "--required", "block", "--", "true"];
        let wide = group.submit(&wide);
        group.wait_state(&wide, "completed");
    }
    assert_eq!(group.wait_state(&long, "running")["attempt"], 1);
    for id in &acknowledged {
        group.wait_state(id, "completed");
    }
    assert_eq!(group.json(&["status"])["violations"], json!([]));
    figures.push(("acknowledged jobs, all completed".to_owned(), json!(acknowledged.len())));
    assert!(acknowledged.len() > 5, "there was no load: {acknowledged:?}");

    refuses(&mut group, &old);
    figures.push(("an old binary on the new data".to_owned(), json!("refuses")));
    figures.push(("seconds".to_owned(), json!(begun.elapsed().as_secs())));
    report(&figures);
}

/// Followers first, then the leader, each on its own data folder.
fn replace_all(group: &mut Group, old: &std::path::Path, figures: &mut Vec<(String, Value)>) {
    let leader = group.leader();
    let mut order: Vec<usize> = (1..=3).filter(|number| *number != leader).collect();
    order.push(leader);
    group.exe = ROWEN.into();
    for (place, number) in order.iter().enumerate() {
        let last = place + 1 == order.len();
        group.end(*number, Signal::SIGTERM);
        if last {
            // Its log is that of both builds: they must come to one state.
            let (index, hash) = replayed(old, group, *number, None);
            let (_, new) = replayed(ROWEN.as_ref(), group, *number, Some(index));
            assert_eq!(hash, new, "the state after entry {index}");
            figures.push((format!("state hash of both builds at {index}"), json!(hash)));
        }
        group.serve(*number);
        group.wait_voters(&[1, 2, 3]);
        if last {
            break;
        }
        std::thread::sleep(MIX);
        let status = group.status();
        assert_eq!(status["cluster_version"], 1, "an old replica is left: {status:#}");
        figures.push((format!("cluster version with {} of 3 new", place + 1), json!(1)));
    }
    wait("the cluster version to rise", 20, || {
        (group.status()["cluster_version"] == 2).then_some(())
    });
    figures.push(("cluster version with 3 of 3 new".to_owned(), json!(2)));
}

/// Last index and state hash of a stopped replica's data, as a build sees it.
fn replayed(
    exe: &std::path::Path,
    group: &Group,
    number: usize,
    until: Option<u64>,
) -> (u64, String) {
    let data = group.folder.join(format!("replica-{number}"));
    let mut command = Command::new(exe);
    command.args(["replay", "-o", "json", "--data"]).arg(data);
    if let Some(until) = until {
        command.args(["--until", &until.to_string()]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    let index = view["index"].as_u64().unwrap_or_else(|| panic!("no index: {view:#}"));
    (index, view["state_hash"].as_str().unwrap().to_owned())
}

/// Submits one job after another; the ids of those that were acknowledged.
fn submit_until(stop: &AtomicBool, exe: &std::path::Path, addrs: &str) -> Vec<String> {
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let args = ["submit", "--parsable", "--name", "load", "-g", "1", "--", "true"];
        let output = Command::new(exe).args(args).env("ROWEN_ADDR", addrs).output().unwrap();
        let id = text(&output.stdout);
        if id.parse::<u64>().is_ok() {
            acknowledged.push(id);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    acknowledged
}

fn refuses(group: &mut Group, old: &std::path::Path) {
    group.end(3, Signal::SIGTERM);
    let mut child = Command::new(old)
        .args(["serve", "--config", &group.config(3)])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ended = wait("the old binary to refuse", 30, || child.try_wait().unwrap());
    assert!(!ended.success());
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(said.contains("is newer than this build reads"), "{said}");
    group.serve(3);
    group.wait_voters(&[1, 2, 3]);
}

#[expect(clippy::print_stdout, reason = "the test runner shows it with --nocapture")]
fn report(figures: &[(String, Value)]) {
    let width = figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = figures.iter().map(|(name, value)| format!("{name:width$}  {value}\n"));
    let table: String = lines.collect();
    println!("{table}");
    let Some(file) = std::env::var_os("ROWEN_UPGRADE_REPORT").map(PathBuf::from) else { return };
    let figure = |(name, value): &(String, Value)| json!({"name": name, "value": value});
    let figures: Vec<Value> = figures.iter().map(figure).collect();
    let view = json!({"command": "xtask upgrade", "figures": figures, "ok": true});
    std::fs::write(file.with_extension("json"), view.to_string()).unwrap();
    std::fs::write(file.with_extension("txt"), table).unwrap();
}
