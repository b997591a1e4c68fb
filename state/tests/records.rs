//! Golden files: the bytes of every schema ever written decode to what they meant then, and
//! what is no record is refused. `UPDATE_GOLDEN=1` writes missing files, never existing ones.

use std::{fmt::Debug, fs, path::PathBuf};

use rowen_state::{
    AllocationId, Cluster, Code, Command, Decision, Entry, Epoch, FillerId, FillerSpec, GpuMask,
    Group, Hold, Job, JobEvent, JobId, JobSpec, JobState, LabelRule, LabelTest, NodeFilter, NodeId,
    NodeReport, Part, PartReport, Place, Plan, Probe, QueueSpec, Quota, Refusal, ReplicaId, Reply,
    RequestId, Resources, Seer, Shape, SnapshotError, Spread, StopReason, Task, TaskPhase,
    TaskReport, Timing,
    codec::{self, CodecError, Kind, READS_VERSION, Stored},
};
use rowen_topology::{FaultyLink, Level, drawing};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The file's bytes; written first where they are missing and `UPDATE_GOLDEN` says so.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = path(name);
    if !path.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, bytes).expect("the folder of golden files can be written");
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}; UPDATE_GOLDEN=1 writes it"))
}

/// Of each version that has it, from `since`: `NAME.vN` decodes to `value` and is what is written.
fn check<T: Stored + Clone + PartialEq + Debug>(name: &str, since: u32, value: &T) {
    for version in since..=READS_VERSION {
        let name = format!("{name}.v{version}");
        let bytes = codec::encode(version, value.clone()).expect("a small value");
        let golden = golden(&name, &bytes);
        let decoded: T = codec::decode(&golden).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(decoded, *value, "{name}");
        assert_eq!(bytes, golden, "{name} is written differently now: that needs a new schema");
    }
}

fn job_spec() -> JobSpec {
    JobSpec {
        name: "llama-pretrain".into(),
        tenant: "research".into(),
        queue: "main".into(),
        priority: 500,
        workers: 2,
        processes_per_worker: 8,
        resources: Resources {
            gpus: 8,
            gpu_model: Some("H100".into()),
            cpus: 96,
            memory_mib: 1 << 20,
        },
        required: Some(Level::Block),
        preferred: Some(Level::Nvlink),
        command: vec!["python3".into(), "train.py".into()],
        env: [("NCCL_DEBUG".into(), "INFO".into())].into(),
        working_dir: "/srv/train".into(),
        time_limit_ms: 3_600_000,
        notice_ms: 120_000,
        restarts: 3,
        checkpoint_interval_ms: 600_000,
        shape: Default::default(),
    }
}

/// Every word of version 2.
fn shape() -> Shape {
    let rule = |key: &str, test| LabelRule { key: key.into(), test };
    Shape {
        groups: vec![
            Group { workers: 2, level: Level::Block, preferred: true },
            Group { workers: 1, level: Level::Nvlink, preferred: false },
        ],
        balanced: true,
        spread: vec![Spread { workers: 2, level: Level::Pod }],
        locality_wait_ms: 600_000,
        nodes: NodeFilter {
            gpu_models: vec!["H100".into(), "H200".into()],
            labels: vec![
                rule("tier", LabelTest::In(vec!["gold".into()])),
                rule("zone", LabelTest::NotIn(vec!["b".into()])),
                rule("ib", LabelTest::Exists),
                rule("canary", LabelTest::Missing),
            ],
            exclusive: true,
        },
        min_workers: 2,
        grow_after_ms: 1_800_000,
    }
}

fn shaped_job() -> JobSpec {
    let resources = Resources { gpu_model: None, ..job_spec().resources };
    let spec = JobSpec { resources, shape: shape(), required: None, ..job_spec() };
    spec.validate().expect("every word of it makes sense");
    spec
}

fn filler_spec() -> FillerSpec {
    FillerSpec {
        name: "chat".into(),
        tenant: "serving".into(),
        model: "smollm2-135m".into(),
        resources: Resources { gpus: 1, gpu_model: None, cpus: 8, memory_mib: 65_536 },
        min_instances: 1,
        max_instances: 16,
        value_micros: 2_500_000,
        warm_up_ms: 30_000,
        notice_ms: 10_000,
        withdraw_ms: 4_000,
        readiness: Some(Probe {
            http_path: "/health".into(),
            port: 8080,
            period_ms: 500,
            exec: vec!["true".into()],
        }),
        command: vec!["serve".into()],
        env: [("PORT".into(), "8080".into())].into(),
        working_dir: String::new(),
    }
}

fn task_report(phase: TaskPhase) -> TaskReport {
    TaskReport {
        node: NodeId(2),
        allocation: AllocationId(7),
        rank: 1,
        epoch: Epoch { incarnation: 1, index: 42 },
        phase,
        port: 8081,
        message: "out of memory".into(),
    }
}

fn node_report() -> NodeReport {
    NodeReport {
        node: NodeId(2),
        boot_id: "4b1d".into(),
        addr: "10.0.0.2".into(),
        ports: vec![30_000, 30_001],
        healthy: GpuMask(0xff),
        simulated: true,
        version: "0.1.0".into(),
        folder: "6c0f".into(),
        said_ms: 81_000,
        tasks: vec![task_report(TaskPhase::Running)],
    }
}

fn plan() -> Plan {
    let place = Place { node: NodeId(2), gpus: GpuMask(0b1111) };
    let why = String::from("the smallest block that fits");
    let (job, filler) = (JobId(3), FillerId(1));
    Plan {
        based_on: 41,
        decisions: vec![
            Decision::Start { job, places: vec![place, place], why: why.clone() },
            Decision::Hold { job, places: vec![place], victims: vec![AllocationId(7)], why },
            Decision::StartInstance { filler, place },
            Decision::Wait { job, reason: "no block has 16 free".into() },
            Decision::Unfilled { filler, reason: String::new() },
        ],
    }
}

fn growth() -> Command {
    let place = Place { node: NodeId(2), gpus: GpuMask(0b1111) };
    let (job, victims, why) = (JobId(3), vec![AllocationId(7)], "from 1 to 2 workers".into());
    let grow = Decision::Grow { job, places: vec![place, place], victims, why };
    Command::CommitPlan(Plan { based_on: 41, decisions: vec![grow] })
}

fn timing(node_lease_ms: u64) -> Timing {
    Timing { node_lease_ms, heartbeat_ms: 1_000, kill_ms: 2_000, drift_ppm: 500 }
}

fn queue() -> QueueSpec {
    QueueSpec {
        name: "main".into(),
        parent: String::new(),
        quota: Quota { guarantee_gpus: 64, limit_gpus: Some(128) },
        by_model: [("H200".into(), Quota { guarantee_gpus: 0, limit_gpus: Some(8) })].into(),
        lend_gpus: Some(32),
        weight: 3,
        preempts: true,
        min_run_ms: 600_000,
    }
}

/// One of each kind of part.
fn part_reports() -> Vec<PartReport> {
    let (node, leaf) = (String::from("n1"), String::from("a-leaf"));
    let links = [
        FaultyLink::NvLink { node: node.clone(), gpu: 1 },
        FaultyLink::Rail { node: node.clone(), leaf: leaf.clone() },
        FaultyLink::Uplink { leaf, spine: "p0-spine".into() },
    ];
    let report = |part| PartReport {
        part,
        left_milli: 500,
        mended: false,
        seer: Seer::Operator,
        reason: "symbol errors".into(),
    };
    let gpu = PartReport {
        left_milli: 0,
        mended: true,
        seer: Seer::Agent,
        ..report(Part::Gpu { node, gpu: 3 })
    };
    links.map(Part::Link).map(report).into_iter().chain([gpu]).collect()
}

/// Every command by the name of its file. The match below makes a new variant a compile error.
fn commands() -> Vec<(&'static str, Command)> {
    let fabric = drawing::parse(
        "pod p0\nblock a: n[1-2] x8\nblock b: n3 x4 H200\nnvlink nvl0: n[1-2]\nrack r1: n3\npower f: n1",
    );
    let reason = String::from("fan fails");
    let node = NodeId(2);
    let phases = [
        TaskPhase::Bound,
        TaskPhase::Running,
        TaskPhase::Ready,
        TaskPhase::Exited { code: -1 },
        TaskPhase::Lost,
    ];
    let commands = vec![
        Command::Tick,
        Command::SetFabric(fabric.expect("a drawing")),
        Command::SubmitJob(job_spec()),
        Command::CancelJob(JobId(3)),
        Command::RequeueJob(JobId(3)),
        Command::DeployFiller(filler_spec()),
        Command::DrainFiller(FillerId(1)),
        Command::RemoveFiller(FillerId(1)),
        Command::CordonNode { node, reason: reason.clone() },
        Command::DrainNode { node, reason },
        Command::UndrainNode(node),
        Command::NodeUp(node_report()),
        Command::NodeSilent { node, came: 12 },
        Command::NodeLost { node, came: 12 },
        Command::Report(phases.map(task_report).into()),
        Command::CommitPlan(plan()),
        Command::AdmitReplica { id: Some(ReplicaId(2)), addr: "10.0.0.2:7078".into() },
        Command::RemoveReplica(ReplicaId(2)),
        Command::ForgetNode(node),
        Command::RaiseVersion { to: 2, asked: vec![ReplicaId(1), ReplicaId(4)] },
        Command::SetTiming { timing: timing(10_000), granted: Some(timing(20_000)) },
        Command::SettleTiming { since: 12 },
        Command::SetHealth(part_reports()),
        Command::SetQueue(queue()),
        Command::RemoveQueue("main".into()),
    ];
    let name = |command: &Command| match command {
        Command::Tick => "tick",
        Command::SetFabric(_) => "set-fabric",
        Command::SubmitJob(_) => "submit-job",
        Command::CancelJob(_) => "cancel-job",
        Command::RequeueJob(_) => "requeue-job",
        Command::DeployFiller(_) => "deploy-filler",
        Command::DrainFiller(_) => "drain-filler",
        Command::RemoveFiller(_) => "remove-filler",
        Command::CordonNode { .. } => "cordon-node",
        Command::DrainNode { .. } => "drain-node",
        Command::UndrainNode(_) => "undrain-node",
        Command::NodeUp(_) => "node-up",
        Command::NodeSilent { .. } => "node-silent",
        Command::NodeLost { .. } => "node-lost",
        Command::Report(_) => "report",
        Command::CommitPlan(_) => "commit-plan",
        Command::AdmitReplica { .. } => "admit-replica",
        Command::RemoveReplica(_) => "remove-replica",
        Command::ForgetNode(_) => "forget-node",
        Command::RaiseVersion { .. } => "raise-version",
        Command::SetTiming { .. } => "set-timing",
        Command::SettleTiming { .. } => "settle-timing",
        Command::SetHealth(_) => "set-health",
        Command::SetQueue(_) => "set-queue",
        Command::RemoveQueue(_) => "remove-queue",
    };
    commands.into_iter().map(|command| (name(&command), command)).collect()
}

fn entry(command: Command) -> Entry {
    let request = Some(RequestId { client: "cli-7f3a".into(), seq: 9 });
    Entry { at_ms: 1_795_000_000_000, principal: "operator".into(), request, command }
}

#[test]
fn entries() {
    for (name, command) in commands() {
        let since = match command {
            Command::RaiseVersion { to, .. } => to, // the first entry of that version
            _ => command.since(),
        };
        check(&format!("entry-{name}"), since, &entry(command));
    }
    check("entry-submit-shaped-job", 2, &entry(Command::SubmitJob(shaped_job())));
    check("entry-commit-growth", 2, &entry(growth()));
    let bare = Entry { request: None, ..entry(Command::Tick) };
    check("entry-without-request", 1, &bare);
}

/// What an older version has no word for is not written in it, whatever would come of it.
#[test]
fn an_older_version_gets_nothing_of_a_newer_one() {
    let shaped = ("submit-shaped-job", Command::SubmitJob(shaped_job()));
    for (name, command) in commands().into_iter().chain([shaped, ("growth", growth())]) {
        let since = command.since();
        if since > 1 {
            let error = codec::encode(since - 1, entry(command)).unwrap_err();
            assert_eq!(error, CodecError::Older { version: since - 1, needs: since }, "{name}");
        }
    }
    let error = CodecError::Older { version: 1, needs: 2 }.to_string();
    assert_eq!(error, "cluster version is 1; upgrade every replica first (this needs version 2)");
}

#[test]
fn answers() {
    type Answer = Result<Reply, Refusal>;
    let refused = |code| Err(Refusal { code, message: "job 3 has ended".into() });
    let answers: Vec<Answer> = vec![
        Ok(Reply::Done),
        Ok(Reply::Job(JobId(3))),
        Ok(Reply::Filler(FillerId(1))),
        Ok(Reply::Planned { accepted: 4, rejected: 1 }),
        Ok(Reply::Replica(ReplicaId(2))),
        refused(Code::Invalid),
        refused(Code::NotFound),
        refused(Code::Conflict),
        refused(Code::Exhausted),
        refused(Code::Expired),
    ];
    // Frozen as one list; each answer is a record of its own now, with the same body.
    let list = golden("answers.v1", &[]);
    let bodies = answers.iter().flat_map(|answer| {
        let bytes = codec::encode(READS_VERSION, answer.clone()).expect("a small value");
        assert_eq!(codec::decode::<Answer>(&bytes).unwrap(), *answer);
        bytes[4..].to_vec()
    });
    assert_eq!(bodies.collect::<Vec<u8>>(), list[12..], "after the header and the length");
}

#[test]
fn archive() {
    let what = "attempt 2 bound: the smallest block that fits".to_owned();
    let event = JobEvent { index: 42, at_ms: 1_795_000_000_000, what };
    check("archive-event", 1, &event);
    let task = Task {
        node: NodeId(2),
        gpus: GpuMask(0xff),
        phase: TaskPhase::Exited { code: 137 },
        since_ms: 1_795_000_004_000,
        port: 0,
        released: true,
        message: "out of memory".into(),
    };
    let job = Job {
        id: JobId(3),
        spec: job_spec().into(),
        state: JobState::Failed,
        reason: "worker 1 on n2 ended with 137".into(),
        reason_index: 57,
        attempt: 2,
        failures: 1,
        allocation: None,
        hold: Some(Hold {
            places: vec![Place { node: NodeId(2), gpus: GpuMask(0xff) }],
            victims: vec![AllocationId(4)],
            since_ms: 1_795_000_000_500,
            deadline_ms: 1_795_000_001_000,
            index: 41,
        }),
        stopping: Some(StopReason::Evicted { by: JobId(9) }),
        submitted_ms: 1_795_000_000_000,
        held_ms: 1_795_000_000_500,
        bound_ms: 1_795_000_001_000,
        running_ms: 1_795_000_002_000,
        ended_ms: 1_795_000_004_000,
        exit_code: 137,
        gpu_ms: 48_000,
        last_tasks: vec![Task { phase: TaskPhase::Lost, ..task.clone() }, task],
        queued_ms: 1_795_000_000_000,
    };
    check("archive-job", 1, &job);
    let queued_ms = 1_795_000_003_000;
    check("archive-shaped-job", 2, &Job { spec: shaped_job().into(), queued_ms, ..job });
}

/// Compared by what it says, not with a fresh one: the words of reasons may change freely.
#[test]
fn snapshot() {
    for version in 1..=READS_VERSION {
        let mut story = story();
        let raise = |to| Command::RaiseVersion { to, asked: vec![ReplicaId(1)] };
        let mut more: Vec<Command> = (2..=version).map(raise).collect();
        if version == 2 {
            more.push(Command::SetTiming { timing: timing(10_000), granted: Some(timing(20_000)) });
            let part = Part::Link(FaultyLink::Rail { node: "n1".into(), leaf: "a-leaf".into() });
            more.push(Command::SetHealth(vec![PartReport { part, ..part_reports().remove(0) }]));
            more.push(Command::SetQueue(queue()));
        }
        for command in more {
            let entry = Entry { request: None, ..entry(command) };
            let answer = story.apply(story.applied() + 1, &entry).answer;
            assert_eq!(answer, Some(Ok(Reply::Done)));
        }
        let bytes = golden(&format!("snapshot.v{version}"), &story.to_snapshot().unwrap());
        assert_eq!(u32::from(bytes[2]), version);
        check_story(&bytes, version);
    }
}

fn check_story(bytes: &[u8], version: u32) {
    let restored = Cluster::from_snapshot(bytes).expect("a golden snapshot");
    assert_eq!(restored.to_snapshot().expect("written again"), bytes);
    assert_eq!(restored.meta().version, version);
    assert_eq!(restored.verify(), []);
    assert_eq!(
        (restored.applied(), restored.replicas().len()),
        (if version == 1 { 11 } else { 15 }, 1)
    );
    let states: Vec<_> = restored.jobs().values().map(|job| job.state).collect();
    assert_eq!(states, [JobState::Completed, JobState::Holding]);
    assert_eq!(restored.allocations().len(), 1);
    assert_eq!(*restored.filler_named("chat").expect("deployed").spec, filler_spec());
    assert_eq!(restored.booked_usage().map(|(_, gpu_ms)| gpu_ms).collect::<Vec<_>>(), [16]);
    assert_eq!(restored.nodes().len(), 3);
    let slow: Vec<u16> =
        restored.impaired().iter().map(|one| one.left_milli(Level::Block)).collect();
    assert_eq!(slow, if version == 1 { vec![] } else { vec![500] });
}

/// A gang that ran and ended, a hold with its victim, a request: a row of everything.
fn story() -> Cluster {
    let mut cluster = Cluster::new(1);
    let mut run = |command| {
        let index = cluster.applied() + 1;
        let at_ms = 1_795_000_000_000 + index;
        let request = Some(RequestId { client: "cli-7f3a".into(), seq: index });
        let entry = Entry { at_ms, principal: "operator".into(), request, command };
        let answer = cluster.apply(index, &entry).answer;
        assert!(matches!(answer, Some(Ok(_))), "{answer:?}");
        assert!(!matches!(answer, Some(Ok(Reply::Planned { rejected: 1.., .. }))), "{answer:?}");
    };
    run(Command::SetFabric(drawing::parse("block a: n[1-2] x8 + n3 x8 H200").expect("a drawing")));
    for node in [NodeId(1), NodeId(2)] {
        run(Command::NodeUp(NodeReport { node, tasks: vec![], ..node_report() }));
    }
    run(Command::SubmitJob(job_spec()));
    let resources = Resources { gpus: 1, ..Resources::default() };
    run(Command::SubmitJob(JobSpec { resources, ..job_spec() }));
    run(Command::DeployFiller(filler_spec()));
    run(Command::AdmitReplica { id: None, addr: "10.0.0.9:7078".into() });
    let place = |node, gpus| Place { node: NodeId(node), gpus: GpuMask(gpus) };
    let decide = |decision| Command::CommitPlan(Plan { based_on: 6, decisions: vec![decision] });
    let (why, job) = (String::from("fits"), JobId(1));
    run(decide(Decision::Start { job, places: vec![place(1, 0xff), place(2, 0xff)], why }));
    let end = |rank: u32| TaskReport {
        node: NodeId(rank + 1),
        allocation: AllocationId(1),
        rank,
        epoch: Epoch { incarnation: 1, index: 8 },
        ..task_report(TaskPhase::Exited { code: 0 })
    };
    run(Command::Report(vec![end(0), end(1)]));
    run(decide(Decision::StartInstance { filler: FillerId(1), place: place(1, 1) }));
    let (why, job) = (String::from("fits"), JobId(2));
    let (places, victims) = (vec![place(1, 1), place(1, 2)], vec![AllocationId(2)]);
    run(decide(Decision::Hold { job, places, victims, why }));
    cluster
}

#[test]
fn what_is_no_record_is_refused() {
    let tick = entry(Command::Tick);
    let bytes = codec::encode(1, tick).unwrap();
    let read = |bytes: &[u8]| codec::decode::<Entry>(bytes).unwrap_err();
    let changed = |at: usize, byte| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(read(&[]), CodecError::NotARecord(0));
    assert_eq!(read(&bytes[..3]), CodecError::NotARecord(3));
    assert_eq!(read(&changed(0, b'X')), CodecError::NotARecord(bytes.len()));
    assert_eq!(read(&changed(3, 1)), CodecError::NotARecord(bytes.len()), "reserved");
    assert_eq!(read(&changed(1, 4)), CodecError::Kind { found: 4, expected: 1 });
    assert_eq!(read(&changed(2, 0)), CodecError::NotARecord(bytes.len()), "no schema");
    let newest = READS_VERSION as u8;
    let newer = read(&changed(2, newest + 1));
    assert_eq!(newer, CodecError::Newer { kind: 1, found: newest + 1, newest });
    assert_eq!(
        CodecError::Newer { kind: 1, found: 3, newest: 2 }.to_string(),
        "record kind 1 is of cluster version 3, this build reads up to 2; start a newer rowen here"
    );
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(read(&longer), CodecError::Body(_)), "a trailing byte");
    for length in 4..bytes.len() {
        assert!(matches!(read(&bytes[..length]), CodecError::Body(_)), "cut at {length}");
    }
}

/// The first length in an entry is the principal's: 2^42 bytes would abort if it were believed.
#[test]
fn a_huge_length_is_refused_before_it_is_allocated() {
    let mut bytes = codec::encode(1, entry(Command::Tick)).unwrap();
    for length in [1u64 << 42, u64::MAX, 15 << 20] {
        bytes[12..20].copy_from_slice(&length.to_le_bytes());
        let error = codec::decode::<Entry>(&bytes).unwrap_err();
        assert!(matches!(error, CodecError::Body(_)), "{length}: {error}");
    }
    // A list of 2^42 nodes in a snapshot, whose limit is gigabytes.
    let mut bytes = Cluster::new(1).to_snapshot().unwrap();
    let nodes = bytes.len() - (7 * 8 + 16);
    assert_eq!(bytes[nodes..nodes + 8], [0; 8]);
    bytes[nodes..nodes + 8].copy_from_slice(&(1u64 << 42).to_le_bytes());
    let error = Cluster::from_snapshot(&bytes).unwrap_err();
    assert!(matches!(error, SnapshotError::Codec(CodecError::Body(_))), "{error}");
}

/// Whatever can be written can be read back: the limit holds for both alike.
#[test]
fn the_limit_is_the_same_both_ways() {
    let of_size =
        |principal: usize| Entry { principal: "x".repeat(principal), ..entry(Command::Tick) };
    let overhead = codec::encode(1, of_size(0)).unwrap().len();
    let largest = of_size(Kind::Entry.limit_bytes() - overhead);
    let bytes = codec::encode(1, largest.clone()).unwrap();
    assert_eq!(bytes.len(), Kind::Entry.limit_bytes());
    assert_eq!(codec::decode::<Entry>(&bytes).unwrap(), largest);
    assert!(codec::encode(1, of_size(largest.principal.len() + 1)).is_err());
    let longer = [&bytes[..], &[0]].concat();
    let error = codec::decode::<Entry>(&longer).unwrap_err();
    assert_eq!(error, CodecError::TooLarge(longer.len()));
}

#[test]
fn a_snapshot_of_another_state_is_refused() {
    let mut bytes = story().to_snapshot().unwrap();
    bytes[4] ^= 1; // of the state hash, which comes first
    let error = Cluster::from_snapshot(&bytes).unwrap_err().to_string();
    assert!(error.starts_with("the snapshot restores to state hash"), "{error}");
    bytes[4] ^= 1;
    bytes.pop();
    assert!(Cluster::from_snapshot(&bytes).is_err());
}
