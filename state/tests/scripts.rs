//! Runs each `tests/scripts/*.txt`: blocks of commands, a line `----`, and what came of them.
//! `UPDATE_EXPECT=1` writes what came of them. Adding a case is adding a file.
//!
//! ```text
//! fabric block a: n[1-2] x4              ; is a line break
//! up n1 n2 [sick=0-1] [knows=ALLOCATION] [folder=WORD] [said=MS]
//!                                         (agents come; a known allocation's tasks run)
//! reboot|silent|lost|forget|cordon|drain|undrain n1 [came=INDEX]
//! submit NAME workers=2 gpus=4 [notice=S limit=S restarts=N priority=N required=LEVEL]
//! filler NAME gpus=1 max=4 [notice=S command=WORD]
//! cancel|requeue JOB          drain-filler|remove-filler FILLER
//! start JOB n1:0-3 n2:0-3     hold JOB n1:0-3 evict ALLOCATION…     instance FILLER n1:0
//! report ALLOCATION[/RANK] running|ready|exit=N|lost [epoch=INDEX]
//! rise VERSION
//! health gpu|nvlink n1 0 | health rail n1 LEAF | health uplink LEAF SPINE  [left=MILLI by=agent mended=1]
//! tick SECONDS                           (only this moves the clock)
//! ```
//! A GPU is shown as `.` (free), `x` (free but unhealthy or on a node that takes nothing),
//! `3` (of allocation 3), `3!` (likewise, on its way out), with `h2` behind it when held for job 2.

use std::{collections::BTreeMap, fs, path::Path};

use expect_test::expect_file;
use rowen_state::{
    AllocationId, Cluster, Command, Decision, Effect, Entry, FillerId, FillerSpec, GpuMask,
    JobEvent, JobId, JobSpec, NodeId, NodeReport, Outcome, Part, PartReport, Place, Plan, Reply,
    Resources, Seer, TaskPhase, TaskReport, codec,
};
use rowen_topology::{FaultyLink, drawing};

datatest_stable::harness! {
    { test = script, root = "tests/scripts", pattern = r"\.txt$" },
}

fn script(path: &Path) -> datatest_stable::Result<()> {
    let text = fs::read_to_string(path)?;
    let mut world = World { cluster: Cluster::default(), now_ms: 1_000_000 };
    let blocks: Vec<_> = text.trim_end().split("\n\n").map(|block| world.block(block)).collect();
    expect_file![fs::canonicalize(path)?].assert_eq(&(blocks.join("\n\n") + "\n"));
    Ok(())
}

struct World {
    cluster: Cluster,
    now_ms: u64,
}

impl World {
    /// Runs a block's commands and gives it back with what came of them.
    fn block(&mut self, block: &str) -> String {
        let (commands, _) = block.split_once("\n----").unwrap_or((block, ""));
        let before = lines(&self.cluster);
        let mut page = format!("{commands}\n----");
        let mut put = |line: String| page.push_str(&format!("\n{line}"));
        for line in commands.lines().filter(|line| !line.starts_with('#')) {
            for command in self.read(line) {
                let outcome = self.run(command);
                told(&self.cluster, &outcome).into_iter().for_each(&mut put);
            }
        }
        for (what, line) in lines(&self.cluster) {
            if before.get(&what) != Some(&line) {
                put(line);
            }
        }
        before.keys().filter(|what| !lines(&self.cluster).contains_key(*what)).for_each(|what| {
            put(format!("{} is gone", what.trim_start_matches(|c: char| c.is_ascii_digit())));
        });
        let bad: Vec<_> = self.cluster.verify().iter().map(ToString::to_string).collect();
        assert!(bad.is_empty(), "{page}\n{bad:?}");
        page
    }

    fn run(&mut self, command: Command) -> Outcome {
        let entry = Entry { at_ms: self.now_ms, principal: "test".into(), request: None, command };
        self.cluster.apply(self.cluster.applied() + 1, &entry)
    }

    fn read(&mut self, line: &str) -> Vec<Command> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (options, words): (Vec<_>, Vec<_>) =
            rest.split_whitespace().partition(|word| word.contains('='));
        let options = Options(options.iter().filter_map(|word| word.split_once('=')).collect());
        let reason = String::from("by the script");
        let node = |world: &World| world.node(words[0]);
        let job = || JobId(number(words[0]));
        let one = match verb {
            "fabric" => {
                let text = rest.replace(';', "\n");
                Command::SetFabric(drawing::parse(&text).unwrap_or_else(|e| panic!("{line}: {e}")))
            }
            "up" => return words.iter().map(|name| self.up(name, &options, "boot")).collect(),
            "reboot" => self.up(words[0], &options, &format!("boot-{}", self.cluster.applied())),
            "silent" => {
                Command::NodeSilent { node: node(self), came: self.came(words[0], &options) }
            }
            "lost" => Command::NodeLost { node: node(self), came: self.came(words[0], &options) },
            "forget" => Command::ForgetNode(node(self)),
            "cordon" => Command::CordonNode { node: node(self), reason },
            "drain" => Command::DrainNode { node: node(self), reason },
            "undrain" => Command::UndrainNode(node(self)),
            "submit" => Command::SubmitJob(job_spec(words[0], &options)),
            "filler" => Command::DeployFiller(filler_spec(words[0], &options)),
            "cancel" => Command::CancelJob(job()),
            "requeue" => Command::RequeueJob(job()),
            "drain-filler" => Command::DrainFiller(self.filler(words[0])),
            "remove-filler" => Command::RemoveFiller(self.filler(words[0])),
            "start" | "hold" | "instance" => self.plan(verb, &words),
            "report" => self.report(words[0], words.get(1).copied(), &options),
            "rise" => Command::RaiseVersion { to: number(words[0]) as u32, asked: vec![] },
            "health" => Command::SetHealth(vec![part_report(&words, &options)]),
            "tick" => {
                self.now_ms += number(words[0]) * 1000;
                Command::Tick
            }
            _ => panic!("{line}: no such verb"),
        };
        vec![one]
    }

    fn node(&self, name: &str) -> NodeId {
        self.cluster.node_named(name).unwrap_or_else(|| panic!("no node {name}")).id
    }

    /// When its agent came last, as the leader knows it.
    fn came(&self, name: &str, options: &Options<'_>) -> u64 {
        let node = self.cluster.nodes().get(self.node(name)).expect("just found");
        options.number("came", node.came)
    }

    fn filler(&self, name: &str) -> FillerId {
        self.cluster.filler_named(name).unwrap_or_else(|| panic!("no filler {name}")).id
    }

    fn up(&self, name: &str, options: &Options<'_>, boot_id: &str) -> Command {
        let sick = options.text("sick").map_or(GpuMask::NONE, mask);
        let known = options.0.get("knows").map(|id| self.tasks(id, TaskPhase::Running));
        let node = self.node(name);
        let mut tasks = known.unwrap_or_default();
        tasks.retain(|task| task.node == node);
        Command::NodeUp(NodeReport {
            node,
            boot_id: boot_id.into(),
            addr: name.into(),
            ports: vec![30_000],
            healthy: GpuMask::first(64).without(sick),
            simulated: true,
            version: "0.1".into(),
            folder: options.text("folder").unwrap_or_default().into(),
            said_ms: options.number("said", 0),
            tasks,
        })
    }

    fn plan(&self, verb: &str, words: &[&str]) -> Command {
        let place = |word: &&str| {
            let (node, gpus) = word.split_once(':').unwrap_or_else(|| panic!("{word}: no place"));
            Place { node: self.node(node), gpus: mask(gpus) }
        };
        let split = words.iter().position(|word| *word == "evict").unwrap_or(words.len());
        let places: Vec<_> = words[1..split].iter().map(place).collect();
        let victims = words.iter().skip(split + 1).map(|word| AllocationId(number(word))).collect();
        let why = String::from("it fits");
        let decision = match verb {
            "start" => Decision::Start { job: JobId(number(words[0])), places, why },
            "hold" => Decision::Hold { job: JobId(number(words[0])), places, victims, why },
            _ => Decision::StartInstance { filler: self.filler(words[0]), place: places[0] },
        };
        Command::CommitPlan(Plan { based_on: self.cluster.applied(), decisions: vec![decision] })
    }

    /// Reports of an allocation's tasks, or of the one of a rank: `3` or `3/0`.
    fn tasks(&self, what: &str, phase: TaskPhase) -> Vec<TaskReport> {
        let (id, rank) = what.split_once('/').map_or((what, None), |(id, rank)| (id, Some(rank)));
        let id = AllocationId(number(id));
        let allocation = self.cluster.allocations().get(id).expect("a live allocation");
        let tasks = (0u32..).zip(&allocation.tasks);
        tasks
            .filter(|(number, _)| rank.is_none_or(|rank| rank == number.to_string()))
            .map(|(rank, task)| TaskReport {
                node: task.node,
                allocation: id,
                rank,
                epoch: allocation.epoch,
                phase,
                port: 0,
                message: String::new(),
            })
            .collect()
    }

    fn report(&self, what: &str, phase: Option<&str>, options: &Options<'_>) -> Command {
        let phase = match phase {
            Some("running") => TaskPhase::Running,
            Some("ready") => TaskPhase::Ready,
            Some("lost") => TaskPhase::Lost,
            None => TaskPhase::Exited { code: options.number("exit", 0) as i32 },
            Some(other) => panic!("no phase {other}"),
        };
        let mut reports = self.tasks(what, phase);
        for report in &mut reports {
            report.epoch.index = options.number("epoch", report.epoch.index);
        }
        Command::Report(reports)
    }
}

fn part_report(words: &[&str], options: &Options<'_>) -> PartReport {
    let (of, to) = (words[1].to_owned(), words[2].to_owned());
    let part = match words[0] {
        "gpu" => Part::Gpu { node: of, gpu: number(words[2]) as u16 },
        "nvlink" => Part::Link(FaultyLink::NvLink { node: of, gpu: number(words[2]) as u16 }),
        "rail" => Part::Link(FaultyLink::Rail { node: of, leaf: to }),
        "uplink" => Part::Link(FaultyLink::Uplink { leaf: of, spine: to }),
        other => panic!("no part {other}"),
    };
    PartReport {
        part,
        left_milli: options.number("left", 0) as u16,
        mended: options.number("mended", 0) > 0,
        seer: if options.text("by") == Some("agent") { Seer::Agent } else { Seer::Operator },
        reason: "by the script".into(),
    }
}

/// `key=value` words of a line.
struct Options<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Options<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).copied()
    }

    fn number(&self, key: &str, default: u64) -> u64 {
        self.text(key).map_or(default, number)
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// `0-3` or `5`.
fn mask(text: &str) -> GpuMask {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    (number(low) as u32..=number(high) as u32).collect()
}

fn job_spec(name: &str, options: &Options<'_>) -> JobSpec {
    JobSpec {
        name: name.into(),
        tenant: "lab".into(),
        queue: "main".into(),
        priority: options.number("priority", 1) as u32,
        workers: options.number("workers", 1) as u32,
        processes_per_worker: 1,
        resources: resources(options),
        required: options.text("required").map(|level| level.parse().expect("a level")),
        preferred: None,
        command: vec!["train".into()],
        env: BTreeMap::new(),
        working_dir: String::new(),
        time_limit_ms: options.number("limit", 0) * 1000,
        notice_ms: options.number("notice", 10) * 1000,
        restarts: options.number("restarts", 0) as u32,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    }
}

fn filler_spec(name: &str, options: &Options<'_>) -> FillerSpec {
    FillerSpec {
        name: name.into(),
        tenant: "serving".into(),
        model: "m".into(),
        resources: resources(options),
        min_instances: 0,
        max_instances: options.number("max", 4) as u32,
        value_micros: 1,
        warm_up_ms: 0,
        notice_ms: options.number("notice", 5) * 1000,
        withdraw_ms: 0,
        readiness: None,
        command: vec![options.text("command").unwrap_or("serve").into()],
        env: BTreeMap::new(),
        working_dir: String::new(),
    }
}

fn resources(options: &Options<'_>) -> Resources {
    Resources { gpus: options.number("gpus", 1) as u32, ..Resources::default() }
}

/// What an outcome says: the answer unless it is a plain yes, the records, the effects.
fn told(cluster: &Cluster, outcome: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    match outcome.answer.as_ref().expect("an answer") {
        Ok(Reply::Done) => {}
        Ok(Reply::Planned { rejected: 0, .. }) => {}
        Ok(Reply::Planned { rejected, .. }) => lines.push(format!("rejected: {rejected}")),
        Ok(Reply::Job(id)) => lines.push(format!("answer: job {id}")),
        Ok(Reply::Replica(id)) => lines.push(format!("answer: replica {id}")),
        Ok(Reply::Filler(id)) => lines.push(format!("answer: filler {id}")),
        Err(refusal) => lines.push(format!("refused, {:?}: {refusal}", refusal.code)),
    }
    for record in &outcome.records {
        let number = |key: &[u8]| u64::from_be_bytes(key[..8].try_into().expect("an id"));
        if let Some(key) = record.key.strip_prefix(b"story/") {
            let event: JobEvent = codec::decode(&record.value).expect("an event");
            lines.push(format!("story of {}: {}", number(key), event.what));
        } else if let Some(key) = record.key.strip_prefix(b"job/") {
            lines.push(format!("archived: job {}", number(key)));
        }
    }
    let name = |Effect::Push(id): &Effect| {
        cluster.nodes().get(*id).map_or("?", |node| node.name.as_str()).to_owned()
    };
    if !outcome.effects.is_empty() {
        let pushed: Vec<_> = outcome.effects.iter().map(name).collect();
        lines.push(format!("push: {}", pushed.join(" ")));
    }
    lines
}

/// A line for each job, filler and node, by a key that sorts them.
fn lines(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for (id, job) in cluster.jobs().iter() {
        let attempt = if job.attempt > 0 { format!(" #{}", job.attempt) } else { String::new() };
        let reason = if job.reason.is_empty() { "-" } else { &job.reason };
        lines.insert(
            format!("1job {id:03}"),
            format!("job {id} {:?}{attempt}: {reason}", job.state),
        );
    }
    for filler in cluster.fillers().values() {
        let backoff = filler.backoff_until_ms.saturating_sub(cluster.now_ms()) / 1000;
        let backoff = if backoff > 0 { format!(", waits {backoff} s") } else { String::new() };
        let (name, instances) = (&filler.spec.name, filler.instances.len());
        let line = format!(
            "filler {name} {:?}: {instances} instances, {} evicted{backoff}",
            filler.state, filler.evictions
        );
        lines.insert(format!("2filler {name}"), line);
    }
    for node in cluster.nodes().values() {
        let gpus = node.gpus.iter().map(|slot| {
            let held = slot.held.map_or(String::new(), |job| format!("h{job}"));
            let owner = slot.owner.map(|id| {
                let going = cluster.allocations().get(id).is_some_and(|a| a.stop.is_some());
                format!("{id}{}", if going { "!" } else { "" })
            });
            let idle = if node.schedulable() && slot.healthy { "." } else { "x" };
            format!("{}{held}", owner.unwrap_or_else(|| idle.into()))
        });
        let gpus = gpus.collect::<Vec<_>>().join(" ");
        let line = format!("{} {:?} {:?}: {gpus}", node.name, node.liveness, node.duty);
        lines.insert(format!("3{}", node.name), line);
    }
    for (part, health) in cluster.health() {
        let flaps =
            if health.flaps() { format!(", {} relapses", health.relapses) } else { String::new() };
        let line = format!("{part}: {}, said {}{flaps}", health.left_milli, health.said_milli);
        lines.insert(format!("4{part}"), line);
    }
    for slow in cluster.impaired() {
        let name = &cluster.node_at(slow.pos).name;
        lines.insert(format!("5slow {name}"), format!("slow {name}: {:?}", slow.left_milli));
    }
    lines
}
