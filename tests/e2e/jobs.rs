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

/// One of two nodes is taken: the gang starts with one worker of two. When the other node comes free
/// a second attempt has both, at no time without a place.
#[test]
fn a_small_gang_grows() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(&folder.path().join("data"), 2);
    let first = dev.submit(0, &["--name", "first", "-g", "8", "--", "sleep", "60"]);
    dev.wait_state(&first, "running");
    let script = "echo attempt $ROWEN_ATTEMPT rank $RANK of $WORLD_SIZE in $ROWEN_GROUPS; \
                  trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let groups = r#"topology.groups=[{"workers":1,"level":"nvlink"}]"#;
    let sizes = ["--workers", "2", "-g", "8", "--set", "min_workers=1", "--set", "grow_after=1s"];
    let rest = ["--set", groups, "--set", "notice=5s", "--", "sh", "-c", script];
    let id = dev.submit(0, &[&["--name", "small"], &sizes[..], &rest].concat());
    let workers = |job: &serde_json::Value| job["tasks"].as_array().map(Vec::len);
    assert_eq!(workers(&dev.wait_state(&id, "running")), Some(1));
    assert!(dev.rowen(&["cancel", &first]).status.success());
    let grown = wait("the gang to grow", 30, || {
        let job = dev.json(&["job", "show", &id]);
        (job["attempt"] == 2 && job["state"] == "running").then_some(job)
    });
    assert_eq!((workers(&grown), &grown["failures"]), (Some(2), &serde_json::json!(0)));
    wait("its workers to say so", 20, || {
        let said = text(&dev.rowen(&["logs", &id]).stdout);
        said.contains("attempt 2 rank 1 of 2 in nvlink:1").then_some(())
    });
    dev.stop();
}
