//! What a person types first: submit, wait, read the output, plan, why, cancel.

use std::time::{Duration, Instant};

use crate::rig::{Dev, alone, lives, text, wait};

#[test]
fn submit_returns_what_the_job_returned() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(&folder.path().join("data"), 2);
    let run = |args: &[&str], script: &str| {
        dev.rowen(
            &[&["submit", "--name", "job", "-g", "1"], args, &["--", "sh", "-c", script]].concat(),
        )
    };
    assert_eq!(run(&["--wait"], "exit 0").status.code(), Some(0));
    assert_eq!(run(&["--wait"], "exit 7").status.code(), Some(7));
    assert_eq!(run(&["--wait", "--timeout", "1s"], "sleep 30").status.code(), Some(124));
    let followed = run(&["--follow", "--workers", "2"], "echo rank $RANK of $WORLD_SIZE");
    assert_eq!(followed.status.code(), Some(0), "{}", text(&followed.stderr));
    let said = text(&followed.stdout);
    assert!(said.contains("rank 0 of 2") && said.contains("rank 1 of 2"), "{said}");
    plans_and_reasons(&dev);
    cancels(&dev);
    dev.stop();
}

fn plans_and_reasons(dev: &Dev) {
    let large = ["--name", "large", "--workers", "5", "--gpus", "8"];
    let before = dev.json(&["queue", "--all"])["jobs"].as_array().unwrap().len();
    let plan = dev.rowen(&[&["plan"], &large[..], &["--", "true"]].concat());
    assert_eq!(plan.status.code(), Some(3), "{}", text(&plan.stderr));
    let after = dev.json(&["queue", "--all"])["jobs"].as_array().unwrap().len();
    assert_eq!(before, after, "a plan changes nothing");
    let id = dev.submit(3, &[&large[..], &["--", "true"]].concat());
    let why = dev.rowen(&["why", &id]);
    assert!(why.status.success(), "{}", text(&why.stderr));
    assert!(!text(&why.stdout).is_empty());
    assert!(dev.rowen(&["cancel", &id]).status.success());
    dev.wait_state(&id, "cancelled");
}

/// A job that ignores SIGTERM has its notice, then it is gone.
fn cancels(dev: &Dev) {
    let file = dev.data.join("pid");
    let script = format!("trap '' TERM; echo $$ > {}; while :; do sleep 1; done", file.display());
    let notice = ["--set", "notice=1s"];
    let args = [&["--name", "stubborn", "-g", "1"], &notice[..], &["--", "sh", "-c", &script]];
    let id = dev.submit(0, &args.concat());
    let pid = wait("the job to write its pid", 20, || {
        std::fs::read_to_string(&file).ok()?.trim().parse::<u32>().ok()
    });
    let begun = Instant::now();
    assert!(dev.rowen(&["cancel", &id]).status.success());
    dev.wait_state(&id, "cancelled");
    assert!(!lives(pid), "cancelled, and yet its process lives");
    assert!(begun.elapsed() >= Duration::from_millis(900), "its notice was cut short");
}
