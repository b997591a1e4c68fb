//! Hand-made messages that the snapshots of all nouns are drawn from.

use std::collections::BTreeMap;

use rowen_api::v1::*;

/// The clock of the samples: all times below lie before it.
pub(crate) const NOW_MS: u64 = 1_790_000_000_000;

/// Job 7, the gang of the samples.
fn train(attempt: u64) -> Owner {
    Owner { kind: OwnerKind::Job as i32, id: 7, name: "train".into(), part: attempt }
}

fn chat(instance: u64) -> Owner {
    Owner { kind: OwnerKind::Filler as i32, id: 2, name: "chat".into(), part: instance }
}

fn slots(states: [(&str, Option<Owner>, Option<Owner>); 4]) -> Vec<GpuSlot> {
    let slot = |(ordinal, (state, owner, held_for)): (usize, (&str, _, _))| GpuSlot {
        ordinal: ordinal as u32,
        state: state.into(),
        owner,
        held_for,
    };
    states.into_iter().enumerate().map(slot).collect()
}

/// A node of 4 GPUs.
fn node(name: &str, rack: &str, block: &str, gpus: Vec<GpuSlot>) -> Node {
    Node {
        name: name.into(),
        rack: rack.into(),
        block: block.into(),
        state: "up".into(),
        duty: "in service".into(),
        gpu_model: "H100".into(),
        gpus,
        simulated: true,
        agent_version: "0.1.0".into(),
        cpus: 192,
        memory_mib: 2 << 20,
        ..Node::default()
    }
}

/// Two blocks, three racks; every state of a GPU occurs.
pub(crate) fn nodes() -> Vec<Node> {
    let job = || ("allocated", Some(train(1)), None);
    let filler = |instance| ("allocated", Some(chat(instance)), None);
    let idle = || ("idle", None, None);
    let leaving = |instance| ("draining", Some(chat(instance)), Some(train(1)));
    let held = || ("held", None, Some(train(1)));
    let down = || ("down", None, None);
    let mut nodes = vec![
        node("node1", "r1", "b1", slots([job(), job(), job(), job()])),
        node("node2", "r1", "b1", slots([job(), job(), job(), job()])),
        node("node3", "r2", "b1", slots([leaving(1), leaving(1), held(), held()])),
        node("node4", "r3", "b2", slots([filler(2), filler(2), idle(), idle()])),
        node("node5", "r3", "b2", slots([idle(), idle(), idle(), idle()])),
        node("node6", "r3", "b2", slots([down(), down(), down(), down()])),
    ];
    nodes[4].duty = "cordoned".into();
    nodes[4].reason = "fan replaced on Monday".into();
    nodes[5].state = "down".into();
    nodes[5].reason = "silent for 14s".into();
    nodes
}

/// Who has what.
pub(crate) fn occupancy() -> Occupancy {
    Occupancy { index: 42, now_ms: NOW_MS, nodes: nodes() }
}

/// A node as `GetNode` gives it.
pub(crate) fn one_node() -> Node {
    let mut node = nodes().remove(3);
    node.boot_id = "5a0c".into();
    node.hardware = (0..4)
        .map(|ordinal| Gpu {
            ordinal,
            uuid: format!("SIM-node4-{ordinal}"),
            model: "H100".into(),
            memory_mib: 81_920,
            pci_bus_id: format!("0000:0{ordinal}:00.0"),
            nvlink_peers: (0..4).filter(|&peer| peer != ordinal).collect(),
            healthy: ordinal != 3,
            health: if ordinal == 3 { "XID 79".into() } else { String::new() },
        })
        .collect();
    node
}

/// What job 7 asks for.
pub(crate) fn job_spec() -> JobSpec {
    JobSpec {
        name: "train".into(),
        tenant: "research".into(),
        queue: "default".into(),
        priority: 50,
        workers: 2,
        processes_per_worker: 1,
        resources: Some(Resources {
            gpus: 4,
            gpu_model: "H100".into(),
            cpus: 32,
            memory_mib: 65_536,
        }),
        required_level: "block".into(),
        command: ["python3", "train.py", "--out", "my runs/7"].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("STEPS".to_owned(), "100".to_owned())]),
        working_dir: "/home/ada/train".into(),
        time_limit_ms: 7_200_000,
        notice_ms: Some(120_000),
        restarts: 3,
        checkpoint_interval_ms: 600_000,
        ..JobSpec::default()
    }
}

/// Job 7, running.
pub(crate) fn running_job() -> Job {
    let task = |rank: u32, node: &str| Task {
        rank,
        node: node.into(),
        gpus: vec![0, 1, 2, 3],
        phase: "running".into(),
        exit_code: 0,
    };
    let event = |index, at_ms, what: &str| JobEvent { index, at_ms, what: what.into() };
    let start = NOW_MS - 75_000;
    Job {
        id: 7,
        spec: Some(job_spec()),
        state: JobState::Running as i32,
        attempt: 1,
        tasks: vec![task(0, "node1"), task(1, "node2")],
        submitted_ms: start,
        bound_ms: start + 4,
        running_ms: start + 19,
        gpu_ms: 599_848,
        events: vec![
            event(40, start, "submitted"),
            event(41, start + 4, "bound to 2 nodes in block b1"),
            event(42, start + 19, "all tasks are up"),
        ],
        ..Job::default()
    }
}

/// One job of each interesting state.
pub(crate) fn jobs() -> Vec<Job> {
    let mut queued = running_job();
    queued.id = 8;
    queued.state = JobState::Queued as i32;
    queued.reason = "no block has 8 free GPUs; block b2 lacks 2".into();
    queued.attempt = 0;
    queued.tasks.clear();
    queued.events.truncate(1);
    (queued.bound_ms, queued.running_ms, queued.gpu_ms) = (0, 0, 0);
    let mut failed = running_job();
    failed.id = 9;
    failed.state = JobState::Failed as i32;
    failed.reason = "rank 1 ended with exit code 3".into();
    failed.exit_code = 3;
    failed.failures = 1;
    failed.ended_ms = NOW_MS - 1_000;
    for task in &mut failed.tasks {
        task.phase = "exited".into();
        task.exit_code = if task.rank == 1 { 3 } else { 143 };
    }
    vec![running_job(), queued, failed]
}

/// A plan that evicts.
pub(crate) fn plan() -> PlanJobResponse {
    let task = |rank: u32, node: &str| Task {
        rank,
        node: node.into(),
        gpus: vec![0, 1, 2, 3],
        ..Task::default()
    };
    PlanJobResponse {
        fits_by_eviction: true,
        tasks: vec![task(0, "node3"), task(1, "node4")],
        victims: vec![Victim {
            owner: Some(chat(2)),
            node: "node4".into(),
            gpus: vec![0, 1],
            notice_ms: 30_000,
        }],
        start_in_ms: 30_000,
        index: 42,
        span: "block b1".into(),
        ..PlanJobResponse::default()
    }
}

/// Why job 8 waits.
pub(crate) fn why() -> WhyJobResponse {
    let level = |level: &str, considered, could, nearest: &str, lacks| LevelReason {
        level: level.into(),
        considered,
        could_if_empty: could,
        nearest: nearest.into(),
        nearest_lacks_gpus: lacks,
    };
    WhyJobResponse {
        id: 8,
        state: JobState::Queued as i32,
        summary: "job 8 waits: no block has 8 free GPUs".into(),
        binding_constraint: "topology.required = block".into(),
        queue_position: 1,
        queue_length: 3,
        levels: vec![level("site", 1, 1, "", 0), level("block", 2, 2, "b2", 2)],
        cheapest_change: "--set topology.required=site".into(),
        start_estimate_ms: Some(NOW_MS + 95_000),
        decided_index: 42,
    }
}

/// A link that mends, one that is down, a GPU; and what two domains offer for it.
pub(crate) fn health() -> ListHealthResponse {
    let rail = |leaf: &str| part::Kind::Rail(RailPart { node: "node1".into(), leaf: leaf.into() });
    let health = |kind, left_milli, said_milli, reason: &str| PartHealth {
        part: Some(Part { kind: Some(kind) }),
        left_milli,
        said_milli,
        said_ms: NOW_MS - 30_000,
        since_ms: NOW_MS - 3_600_000,
        reason: reason.into(),
        ..PartHealth::default()
    };
    let mending = PartHealth {
        relapses: 2,
        trusted_ms: NOW_MS + 210_000,
        ..health(rail("leaf1"), 500, 1_000, "symbol errors")
    };
    let gpu = part::Kind::Gpu(GpuPart { node: "node2".into(), gpu: 3 });
    let gpu = PartHealth { by_agent: true, ..health(gpu, 0, 0, "XID 79") };
    let domain = |level: &str, name: &str, gpus, offers_gpus| DomainHealth {
        level: level.into(),
        name: name.into(),
        gpus,
        offers_gpus,
    };
    ListHealthResponse {
        parts: vec![gpu, mending, health(rail("leaf2"), 0, 0, "")],
        domains: vec![domain("pod", "spine[1-2]", 20, 18), domain("block", "b1", 12, 10)],
        index: 42,
        now_ms: NOW_MS,
    }
}

/// A rack is drained and a gang submitted.
pub(crate) fn what_if() -> WhatIfResponse {
    let job = |id, name: &str, becomes: &str, reason: &str| WhatIfJob {
        id,
        name: name.into(),
        becomes: becomes.into(),
        reason: reason.into(),
        gpus: 8,
        ..WhatIfJob::default()
    };
    let moves = WhatIfJob {
        nodes: vec!["node3".into(), "node4".into()],
        span: "pod spine[1-2]".into(),
        after_ms: 120_000,
        ..job(7, "train", "moves", "node1 is drained; then free GPUs in pod spine[1-2]")
    };
    let waits = WhatIfJob {
        new: true,
        ..job(
            9,
            "big",
            "waits",
            "needs 2 × 4 GPUs inside one block; the nearest, block b2, can give 4 of 8 GPUs",
        )
    };
    WhatIfResponse {
        jobs: vec![moves, waits],
        fillers: vec![WhatIfFiller {
            name: "chat".into(),
            instances_before: 3,
            instances_after: 1,
            evicted: 2,
        }],
        drained: vec!["node1".into(), "node2".into()],
        idle_before_gpus: 6,
        idle_after_gpus: 2,
        index: 42,
        open: false,
    }
}

/// A filler with an instance of each state.
pub(crate) fn filler() -> Filler {
    let instance = |id, node: &str, state: &str, address: &str| Instance {
        id,
        node: node.into(),
        gpus: vec![0, 1],
        state: state.into(),
        since_ms: NOW_MS - 40_000,
        address: address.into(),
        ..Instance::default()
    };
    let mut leaving = instance(1, "node3", "draining", "");
    leaving.deadline_ms = NOW_MS + 12_000;
    leaving.reason = "job 7 train needs its GPUs".into();
    Filler {
        id: 2,
        spec: Some(FillerSpec {
            name: "chat".into(),
            tenant: "serving".into(),
            model: "smollm2-135m".into(),
            resources: Some(Resources { gpus: 2, ..Resources::default() }),
            max_instances: 16,
            value_micros: 1_250_000,
            warm_up_ms: 20_000,
            notice_ms: 30_000,
            withdraw_ms: 10_000,
            readiness: Some(Probe {
                http_path: "/health".into(),
                period_ms: 1_000,
                ..Probe::default()
            }),
            command: vec!["sh".into(), "-c".into(), "exec ./serve --port $ROWEN_PORT".into()],
            working_dir: "/srv".into(),
            ..FillerSpec::default()
        }),
        state: "active".into(),
        instances: vec![leaving, instance(2, "node4", "ready", "10.0.0.4:30001")],
        gpu_ms: 45_000_000,
        evictions: 5,
        reason: "every other GPU is taken".into(),
    }
}

/// The control plane.
pub(crate) fn status() -> ClusterStatus {
    ClusterStatus {
        replica: 1,
        replicas: vec![ReplicaStatus {
            reads_version: Some(2),
            id: 1,
            addr: "127.0.0.1:7077".into(),
            leader: true,
            ..ReplicaStatus::default()
        }],
        term: 3,
        applied: 42,
        now_ms: NOW_MS,
        state_hash: "9af31c02d4e87755".into(),
        incarnation: 1,
        gang_gpu_ms: 6_190_000,
        filler_gpu_ms: 3_100_000,
        idle_gpu_ms: 700_000,
        down_gpu_ms: 10_000,
        evictions: 5,
        jobs_queued: 1,
        jobs_running: 1,
        gpus: 24,
        usage: vec![UsageLine {
            tenant: "research".into(),
            class: "gang".into(),
            gpu_model: "H100".into(),
            gpu_ms: 6_190_000,
        }],
        version: "0.1.0".into(),
        wal_syncs: 40,
        simulated: true,
        ..ClusterStatus::default()
    }
}
