//! Reads from any replica: what was written is there at once, and who is cut off says so.

use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::group::Group;
use crate::rig::{alone, text};

/// "as of log index N (--read …)", on standard error.
fn index_of(output: &Output) -> u64 {
    let said = text(&output.stderr);
    let index = said.strip_prefix("as of log index ").and_then(|rest| rest.split(' ').next());
    index.and_then(|index| index.parse().ok()).unwrap_or_else(|| panic!("no index in {said:?}"))
}

fn jobs(output: &Output) -> Vec<u64> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_u64().unwrap()).collect()
}

#[test]
fn any_replica_answers_and_says_of_which_index() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::start(folder.path(), 3);
    let leader = group.leader();
    let followers: Vec<usize> = (1..=3).filter(|number| *number != leader).collect();
    let list = ["queue", "--all", "-o", "json"];

    // Written at the leader, read at once at each follower, and of which index it was.
    for round in 1..=10u64 {
        let id: u64 = group.submit(&["--name", "waits", "-g", "1", "--", "true"]).parse().unwrap();
        assert_eq!(id, round);
        for follower in &followers {
            let read = group.at(*follower, &[&list[..], &["--read", "linearizable"]].concat());
            assert!(jobs(&read).contains(&id), "replica {follower} does not know of job {id}");
            let index = index_of(&read);
            let again = group.at(*follower, &[&list[..], &["--read", &index.to_string()]].concat());
            assert!(index_of(&again) >= index && jobs(&again).contains(&id));
        }
    }

    // An index that is not reached: a bounded wait, then what to do.
    let far = group.at(followers[0], &[&list[..], &["--read", "1000000"]].concat());
    assert_eq!(far.status.code(), Some(1));
    let said = text(&far.stderr);
    assert!(said.contains("not to 1000000") && said.contains("ask another replica"), "{said}");
    let wrong = group.at(followers[0], &["queue", "--read", "fresh"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));

    // Cut off from a majority, a follower knows what it knew, and says so only when asked.
    let before = index_of(&group.at(followers[0], &[&list[..], &["--read", "stale"]].concat()));
    group.end(followers[1], Signal::SIGKILL);
    group.end(leader, Signal::SIGKILL);
    let refused = group.at(followers[0], &list);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("majority") || said.contains("no leader"), "{said}");
    assert!(refused.stdout.is_empty(), "{}", text(&refused.stdout));
    let stale = group.at(followers[0], &[&list[..], &["--read", "stale"]].concat());
    assert_eq!(jobs(&stale), (1..=10).collect::<Vec<u64>>());
    assert!(index_of(&stale) >= before);
}
