//! Decisions, as scripts: events go in, actions come out.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// `a7.1@5` is rank 1 of allocation 7, bound at index 5 (of incarnation 1).
fn key(text: &str) -> TaskKey {
    let (name, index) = text.split_once('@').unwrap();
    let (allocation, rank) = name[1..].split_once('.').unwrap_or((&name[1..], "0"));
    TaskKey {
        allocation: allocation.parse().unwrap(),
        rank: rank.parse().unwrap(),
        epoch: Epoch { incarnation: 1, index: index.parse().unwrap() },
    }
}

fn show(key: &TaskKey) -> String {
    format!("a{}.{}@{}", key.allocation, key.rank, key.epoch.index)
}

/// `a7@5[0,1]` or `a7@5[0,1]!100-200`: to be sent SIGTERM at 100, SIGKILL at 200.
fn wanted(text: &str) -> (TaskKey, Wanted) {
    let (task, stop) = text.split_once('!').unwrap_or((text, ""));
    let (name, gpus) = task.trim_end_matches(']').split_once('[').unwrap();
    let gpus = gpus.split(',').filter(|gpu| !gpu.is_empty());
    let gpus = gpus.map(|gpu| Ordinal(gpu.parse().unwrap())).collect();
    let stop = stop.split_once('-').map(|(term, kill)| StopAt {
        term_at_ms: term.parse().unwrap(),
        kill_at_ms: kill.parse().unwrap(),
        reason: "told to".to_string(),
    });
    (key(name), Wanted { gpus, notice_ms: 50, stop })
}

fn show_action(action: &Action) -> String {
    match action {
        Action::Persist => "persist".to_string(),
        Action::Launch(key) => format!("launch {}", show(key)),
        Action::Refuse(key, why) => format!("refuse {}: {why}", show(key)),
        Action::Stop(key, stop) => {
            let StopAt { term_at_ms, kill_at_ms, reason } = stop;
            format!("stop {} {term_at_ms}-{kill_at_ms}: {reason}", show(key))
        }
    }
}

fn step(core: &mut Core, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let lines = |items: Vec<String>| items.join("; ");
    match words[0] {
        "welcome" => format!("{:?}", core.welcome(number(1), number(2)).map_err(|e| e.to_string())),
        "beat" => format!("{:?}", core.heartbeat(number(1))),
        "ack" => {
            format!("{:?}", core.heartbeat_ack(number(1), number(2)).map_err(|e| e.to_string()))
        }
        "want" => {
            let tasks = words[3..].iter().map(|text| wanted(text)).collect();
            let desired = Desired { term: number(1), generation: number(2), tasks };
            format!("{:?}", core.desire(desired).map_err(|e| e.to_string()))
        }
        "running" => {
            core.observe(key(words[1]), Phase::Running);
            String::new()
        }
        "exited" => {
            let code = words[2].parse().unwrap();
            core.observe(key(words[1]), Phase::Exited { code, message: String::new() });
            String::new()
        }
        "at" => lines(core.reconcile(number(1)).iter().map(show_action).collect()),
        "report" => match core.report(number(1), 1000) {
            None => "nothing".to_string(),
            Some((seq, keys)) => format!("{seq}: {}", lines(keys.iter().map(show).collect())),
        },
        "reported" => lines(core.report_ack(number(1)).iter().map(show).collect()),
        "restart" => {
            *core = Core::new(core.fence(), core.tasks().clone(), core.lease_expires_ms());
            String::new()
        }
        other => panic!("no such step: {other}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn check(script: &str, expect: Expect) {
    let mut core = Core::new(Fence::default(), BTreeMap::new(), 0);
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let said = step(&mut core, line);
        out.push_str(format!("{line} → {said}").trim_end());
        out.push('\n');
    }
    expect.assert_eq(&out);
}

/// Welcomed by term 1, with a lease until 1000.
const UP: &str = "welcome 1 1000\n beat 0\n ack 1 1\n";

fn check_up(script: &str, expect: Expect) {
    check(&format!("{UP}{script}"), expect);
}

#[test]
fn launches_only_with_a_lease() {
    check(
        "welcome 1 1000
         want 1 1 a7@5[0,1]
         at 10
         beat 20
         ack 1 1
         at 30
         at 31",
        expect![[r#"
            welcome 1 1000 → Ok(())
            want 1 1 a7@5[0,1] → Ok(true)
            at 10 → persist
            beat 20 → (1, 1)
            ack 1 1 → Ok(Some(1020))
            at 30 → launch a7.0@5
            at 31 →
        "#]],
    );
}

#[test]
fn the_lease_counts_from_the_sending() {
    check(
        "welcome 1 1000
         beat 100
         beat 200
         ack 2 1
         ack 1 1
         beat 300
         ack 9 1
         want 1 1 a7@5[0]
         at 1199
         running a7@5
         at 1200
         at 1300
         ack 3 1
         at 1301
         exited a7@5 143
         report 1302",
        expect![[r#"
            welcome 1 1000 → Ok(())
            beat 100 → (1, 0)
            beat 200 → (2, 0)
            ack 2 1 → Ok(Some(1200))
            ack 1 1 → Ok(None)
            beat 300 → (3, 0)
            ack 9 1 → Ok(None)
            want 1 1 a7@5[0] → Ok(true)
            at 1199 → persist; launch a7.0@5
            running a7@5 →
            at 1200 → stop a7.0@5 1200-1250: the node lease ran out
            at 1300 →
            ack 3 1 → Ok(Some(1300))
            at 1301 →
            exited a7@5 143 →
            report 1302 → 1: a7.0@5
        "#]],
    );
}

#[test]
fn stops_what_is_not_wanted_and_waits_for_its_gpus() {
    check_up(
        "want 1 1 a7@5[0,1]
         at 10
         running a7@5
         want 1 2 a8@9[1,2]
         at 20
         at 21
         exited a7@5 0
         at 30",
        expect![[r#"
            welcome 1 1000 → Ok(())
            beat 0 → (1, 0)
            ack 1 1 → Ok(Some(1000))
            want 1 1 a7@5[0,1] → Ok(true)
            at 10 → persist; launch a7.0@5
            running a7@5 →
            want 1 2 a8@9[1,2] → Ok(true)
            at 20 → persist; stop a7.0@5 20-70: no longer wanted on this node
            at 21 →
            exited a7@5 0 →
            at 30 → launch a8.0@9
        "#]],
    );
}

#[test]
fn what_waits_too_long_for_its_gpus_is_tried_elsewhere() {
    // A notice of 50 and a minute, while the lease is held.
    check(
        "welcome 1 1000000
         beat 0
         ack 1 1
         want 1 1 a7@5[0]
         at 10
         running a7@5
         want 1 2 a8@9[0]
         at 20
         at 60069
         report 60069
         at 60070
         report 60071
         exited a7@5 137
         at 60080
         report 60081",
        expect![[r#"
            welcome 1 1000000 → Ok(())
            beat 0 → (1, 0)
            ack 1 1 → Ok(Some(1000000))
            want 1 1 a7@5[0] → Ok(true)
            at 10 → persist; launch a7.0@5
            running a7@5 →
            want 1 2 a8@9[0] → Ok(true)
            at 20 → persist; stop a7.0@5 20-70: no longer wanted on this node
            at 60069 →
            report 60069 → 1: a7.0@5
            at 60070 →
            report 60071 → 2: a8.0@9
            exited a7@5 137 →
            at 60080 →
            report 60081 → 3: a7.0@5
        "#]],
    );
}

#[test]
fn a_stop_only_moves_forward() {
    check_up(
        "want 1 1 a7@5[0]
         at 10
         want 1 2 a7@5[0]!100-200
         at 20
         want 1 3 a7@5[0]!95-195
         at 21
         want 1 4 a7@5[0]!150-300
         at 22
         want 1 5 a7@5[0]!30-60
         at 23
         want 1 6 a7@5[0]
         at 24",
        expect![[r#"
            welcome 1 1000 → Ok(())
            beat 0 → (1, 0)
            ack 1 1 → Ok(Some(1000))
            want 1 1 a7@5[0] → Ok(true)
            at 10 → persist; launch a7.0@5
            want 1 2 a7@5[0]!100-200 → Ok(true)
            at 20 → stop a7.0@5 100-200: told to
            want 1 3 a7@5[0]!95-195 → Ok(true)
            at 21 →
            want 1 4 a7@5[0]!150-300 → Ok(true)
            at 22 →
            want 1 5 a7@5[0]!30-60 → Ok(true)
            at 23 → stop a7.0@5 30-60: told to
            want 1 6 a7@5[0] → Ok(true)
            at 24 →
        "#]],
    );
}

#[test]
fn an_exit_is_final_and_told_until_acknowledged() {
    check_up(
        "want 1 1 a7@5[0]
         at 10
         report 11
         running a7@5
         report 12
         exited a7@5 3
         report 13
         report 14
         reported 1
         report 1012
         report 1013
         reported 2
         reported 3
         report 3000
         want 1 2 a7@5[0]
         at 3001
         report 3002
         reported 4
         want 1 3
         report 9000",
        expect![[r#"
            welcome 1 1000 → Ok(())
            beat 0 → (1, 0)
            ack 1 1 → Ok(Some(1000))
            want 1 1 a7@5[0] → Ok(true)
            at 10 → persist; launch a7.0@5
            report 11 → nothing
            running a7@5 →
            report 12 → 1: a7.0@5
            exited a7@5 3 →
            report 13 → 2: a7.0@5
            report 14 → nothing
            reported 1 →
            report 1012 → nothing
            report 1013 → 3: a7.0@5
            reported 2 →
            reported 3 → a7.0@5
            report 3000 → nothing
            want 1 2 a7@5[0] → Ok(true)
            at 3001 →
            report 3002 → 4: a7.0@5
            reported 4 → a7.0@5
            want 1 3 → Ok(true)
            report 9000 → nothing
        "#]],
    );
}

#[test]
fn older_epochs_terms_and_generations_are_refused() {
    check_up(
        "want 2 7 a8@9[0]
         at 10
         exited a8@9 0
         want 1 8 a7@5[0]
         welcome 1 1000
         ack 1 1
         want 2 6
         want 2 8 a7@5[0] a9@9[0]
         at 20
         report 21",
        expect![[r#"
            welcome 1 1000 → Ok(())
            beat 0 → (1, 0)
            ack 1 1 → Ok(Some(1000))
            want 2 7 a8@9[0] → Ok(true)
            at 10 → persist; launch a8.0@9
            exited a8@9 0 →
            want 1 8 a7@5[0] → Err("term 1 is older than 2, which this node has seen")
            welcome 1 1000 → Err("term 1 is older than 2, which this node has seen")
            ack 1 1 → Err("term 1 is older than 2, which this node has seen")
            want 2 6 → Ok(false)
            want 2 8 a7@5[0] a9@9[0] → Ok(true)
            at 20 → refuse a7.0@5: GPU 0 has a newer owner; launch a9.0@9
            report 21 → 1: a7.0@5; a8.0@9
        "#]],
    );
}

#[test]
fn the_newer_owner_of_a_gpu_wins() {
    check_up(
        "want 1 1 a7@5[0,1]
         at 10
         running a7@5
         want 1 2 a7@5[0,1] a8@6[1]
         at 20
         exited a7@5 143
         at 30",
        expect![[r#"
            welcome 1 1000 → Ok(())
            beat 0 → (1, 0)
            ack 1 1 → Ok(Some(1000))
            want 1 1 a7@5[0,1] → Ok(true)
            at 10 → persist; launch a7.0@5
            running a7@5 →
            want 1 2 a7@5[0,1] a8@6[1] → Ok(true)
            at 20 → persist; stop a7.0@5 20-70: its GPUs have a newer owner
            exited a7@5 143 →
            at 30 → launch a8.0@6
        "#]],
    );
}

#[test]
fn what_should_end_before_it_started_is_not_started() {
    check_up(
        "want 1 1 a7@5[0]!100-200\n at 10\n report 11",
        expect![[r#"
        welcome 1 1000 → Ok(())
        beat 0 → (1, 0)
        ack 1 1 → Ok(Some(1000))
        want 1 1 a7@5[0]!100-200 → Ok(true)
        at 10 → persist; refuse a7.0@5: ended before it started
        report 11 → 1: a7.0@5
    "#]],
    );
}

#[test]
fn a_restarted_agent_keeps_what_runs_until_a_leader_speaks() {
    check_up(
        "want 1 1 a7@5[0] a8@6[1]
         at 10
         running a7@5
         running a8@6
         restart
         at 20
         report 21
         want 1 1 a7@5[0]
         at 22
         restart
         at 1000",
        expect![[r#"
            welcome 1 1000 → Ok(())
            beat 0 → (1, 0)
            ack 1 1 → Ok(Some(1000))
            want 1 1 a7@5[0] a8@6[1] → Ok(true)
            at 10 → persist; launch a7.0@5; launch a8.0@6
            running a7@5 →
            running a8@6 →
            restart →
            at 20 →
            report 21 → 1: a7.0@5; a8.0@6
            want 1 1 a7@5[0] → Ok(true)
            at 22 → stop a8.0@6 22-72: no longer wanted on this node
            restart →
            at 1000 → stop a7.0@5 1000-1050: the node lease ran out
        "#]],
    );
}

#[derive(Debug, Clone)]
enum Event {
    Want { term: u64, tasks: Vec<(u64, u32, Vec<u32>, bool)> },
    Beat { acked: bool },
    Up(usize),
    Exit(usize),
    Report { acked: bool },
    Restart,
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let gpus = prop::collection::btree_set(0_u32..4, 0..3)
        .prop_map(|gpus: BTreeSet<u32>| gpus.into_iter().collect());
    let task = (1_u64..12, 0_u32..2, gpus, prop::bool::weighted(0.2));
    prop_oneof![
        4 => (0_u64..3, prop::collection::vec(task, 0..5))
            .prop_map(|(term, tasks)| Event::Want { term, tasks }),
        3 => any::<bool>().prop_map(|acked| Event::Beat { acked }),
        3 => (0_usize..4).prop_map(Event::Up),
        3 => (0_usize..4).prop_map(Event::Exit),
        2 => any::<bool>().prop_map(|acked| Event::Report { acked }),
        1 => Just(Event::Restart),
        2 => (1_u64..800).prop_map(Event::Wait),
    ]
}

/// A node whose processes do as they are told, and what must hold of it.
struct World {
    core: Core,
    now: u64,
    term: u64,
    generation: u64,
    /// What really lives, with its GPUs.
    alive: BTreeMap<TaskKey, Vec<Ordinal>>,
    /// Highest epoch ever launched on a GPU.
    launched: BTreeMap<Ordinal, Epoch>,
    /// Every key ever launched: a second launch would be a second run.
    ever: BTreeSet<TaskKey>,
    exited: BTreeSet<TaskKey>,
    told: BTreeSet<TaskKey>,
}

impl World {
    fn new() -> Self {
        World {
            core: Core::new(Fence::default(), BTreeMap::new(), 0),
            now: 1,
            term: 1,
            generation: 0,
            alive: BTreeMap::new(),
            launched: BTreeMap::new(),
            ever: BTreeSet::new(),
            exited: BTreeSet::new(),
            told: BTreeSet::new(),
        }
    }

    fn perform(&mut self, event: Event) {
        match event {
            Event::Want { term, tasks } => self.want(term, tasks),
            Event::Beat { acked } => {
                let (seq, _) = self.core.heartbeat(self.now);
                if acked {
                    let before = self.core.lease_expires_ms();
                    self.core.heartbeat_ack(seq, self.term).unwrap();
                    assert!(self.core.lease_expires_ms() >= before);
                    assert!(self.core.lease_expires_ms() <= self.now + 500);
                }
            }
            Event::Up(at) => {
                if let Some(key) = self.alive.keys().nth(at) {
                    self.core.observe(*key, Phase::Running);
                }
            }
            Event::Exit(at) => {
                if let Some(key) = self.alive.keys().nth(at).copied() {
                    self.alive.remove(&key);
                    self.exited.insert(key);
                    self.core.observe(key, Phase::Exited { code: 0, message: String::new() });
                }
            }
            Event::Report { acked } => {
                // Long after the last: everything unacknowledged is due.
                self.now += 1000;
                let Some((seq, keys)) = self.core.report(self.now, 1000) else {
                    assert!(self.exited.is_subset(&self.told), "an exit was not reported");
                    return;
                };
                let unsaid: Vec<_> = self.exited.difference(&self.told).collect();
                assert!(unsaid.iter().all(|key| keys.contains(key)), "an exit was left out");
                if acked {
                    self.told.extend(self.core.report_ack(seq));
                }
            }
            Event::Restart => {
                let (fence, tasks) = (self.core.fence(), self.core.tasks().clone());
                self.core = Core::new(fence, tasks, self.core.lease_expires_ms());
                self.core.welcome(self.term, 500).unwrap();
            }
            Event::Wait(ms) => self.now += ms,
        }
        self.reconcile();
    }

    fn want(&mut self, term: u64, tasks: Vec<(u64, u32, Vec<u32>, bool)>) {
        self.generation += 1;
        let tasks = tasks.into_iter().map(|(index, rank, gpus, stop)| {
            let epoch = Epoch { incarnation: 1, index };
            // As in life, an allocation has one epoch.
            let key = TaskKey { allocation: index, rank, epoch };
            let stop = stop.then(|| StopAt {
                term_at_ms: self.now,
                kill_at_ms: self.now + 100,
                reason: String::new(),
            });
            (key, Wanted { gpus: gpus.into_iter().map(Ordinal).collect(), notice_ms: 50, stop })
        });
        let desired = Desired { generation: self.generation, term, tasks: tasks.collect() };
        let taken = self.core.desire(desired);
        assert_eq!(taken.is_ok(), term >= self.term, "an older term is refused");
        self.term = self.term.max(term);
    }

    fn reconcile(&mut self) {
        for action in self.core.reconcile(self.now) {
            let Action::Launch(key) = action else { continue };
            assert!(self.now < self.core.lease_expires_ms(), "launched without a lease");
            let gpus = self.core.task(&key).unwrap().gpus.clone();
            for gpu in &gpus {
                let used = self.alive.values().any(|other| other.contains(gpu));
                assert!(!used, "two living tasks on one GPU");
                let highest = self.launched.entry(*gpu).or_default();
                assert!(*highest <= key.epoch, "an older epoch was launched");
                *highest = key.epoch;
            }
            let again = self.exited.contains(&key) && !self.told.contains(&key);
            assert!(!again, "relaunched although its exit was never acknowledged");
            self.ever.insert(key);
            self.alive.insert(key, gpus);
        }
        let unwanted = self.core.reconcile(self.now);
        assert!(unwanted.is_empty(), "asking again must bring nothing new: {unwanted:?}");
        for key in self.alive.keys() {
            assert!(self.core.task(key).is_some_and(Task::lives), "a living task was forgotten");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]
    #[test]
    fn a_gpu_has_one_owner(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new();
        world.core.welcome(1, 500).unwrap();
        events.into_iter().for_each(|event| world.perform(event));
    }
}
