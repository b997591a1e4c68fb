//! Plans small cases for `run.py`: one JSON array of cases on standard input, one of answers on
//! standard output. Goes through real commands and the real planner; never knows the optimum.

use std::collections::BTreeMap;
use std::io::{Write, stdin, stdout};

use rowen_state::{
    Cluster, Command, Decision, Entry, GpuMask, JobId, JobSpec, NodeReport, Place, Plan, Reply,
    Resources,
};
use rowen_topology::{Inventory, Level};
use serde::{Deserialize, Serialize};

/// A fabric, what is taken of it, and the queue.
#[derive(Deserialize)]
struct Case {
    fabric: Inventory,
    /// By node: GPUs, cores and memory that somebody has.
    taken: BTreeMap<String, Claim>,
    jobs: Vec<Ask>,
}

#[derive(Deserialize, Clone)]
struct Claim {
    gpus: u32,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    cpus: u32,
    #[serde(default)]
    memory_mib: u64,
}

#[derive(Deserialize)]
struct Ask {
    workers: u32,
    claim: Claim,
    priority: u32,
    required: Option<Level>,
    preferred: Option<Level>,
}

/// What became of a gang: the node of each worker, empty while it waits; and the planner's words.
#[derive(Default, Serialize)]
struct Answer {
    nodes: Vec<String>,
    why: String,
}

fn main() {
    let cases: Vec<Case> = serde_json::from_reader(stdin()).expect("run.py writes cases");
    let answers: Vec<Vec<Answer>> = cases.into_iter().map(answer).collect();
    let text = serde_json::to_string(&answers).expect("strings always serialise");
    writeln!(stdout(), "{text}").expect("run.py reads the answers");
}

/// One planning cycle, carried out.
fn answer(case: Case) -> Vec<Answer> {
    let mut cluster = Cluster::newest();
    let fabric = case.fabric.expand().expect("run.py writes sound fabrics");
    apply(&mut cluster, Command::SetFabric(fabric));
    let nodes: Vec<_> = cluster.nodes().iter().map(|(id, node)| (id, node.name.clone())).collect();
    for (id, name) in &nodes {
        apply(&mut cluster, Command::NodeUp(up(*id)));
        let Some(claim) = case.taken.get(name).filter(|claim| claim.gpus > 0) else { continue };
        let job = submit(&mut cluster, job(1, claim, 0, None, None));
        let place = Place { node: *id, gpus: GpuMask::first(claim.gpus) };
        let start = Decision::Start { job, places: vec![place], why: String::new() };
        assert_eq!(commit(&mut cluster, vec![start]), 0, "what is taken fits");
    }
    let asks = case.jobs.iter();
    let jobs: Vec<JobId> = asks
        .map(|ask| {
            let Ask { workers, claim, priority, required, preferred } = ask;
            submit(&mut cluster, job(*workers, claim, *priority, *required, *preferred))
        })
        .collect();
    let plan = rowen_placement::plan(&cluster);
    assert_eq!(commit(&mut cluster, plan.decisions.clone()), 0, "apply carries the plan out");
    let name = |place: &Place| cluster.nodes().get(place.node).map(|node| node.name.clone());
    let of = |job: JobId| {
        let found = plan.decisions.iter().find_map(|decision| match decision {
            Decision::Start { job: id, places, why } if *id == job => {
                let nodes = places.iter().filter_map(name).collect();
                Some(Answer { nodes, why: why.clone() })
            }
            Decision::Wait { job: id, reason } if *id == job => {
                Some(Answer { nodes: Vec::new(), why: reason.clone() })
            }
            _ => None,
        });
        found.unwrap_or_default()
    };
    jobs.into_iter().map(of).collect()
}

fn apply(cluster: &mut Cluster, command: Command) -> Reply {
    let index = cluster.applied() + 1;
    let entry = Entry { at_ms: 1_000_000, principal: "operator".into(), request: None, command };
    let answer = cluster.apply(index, &entry).answer.expect("apply always answers");
    answer.unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn submit(cluster: &mut Cluster, spec: JobSpec) -> JobId {
    match apply(cluster, Command::SubmitJob(spec)) {
        Reply::Job(id) => id,
        other => panic!("a submit is answered with a job, not {other:?}"),
    }
}

/// How many decisions were refused.
fn commit(cluster: &mut Cluster, decisions: Vec<Decision>) -> u32 {
    let based_on = cluster.applied();
    match apply(cluster, Command::CommitPlan(Plan { based_on, decisions })) {
        Reply::Planned { rejected, .. } => rejected,
        other => panic!("a plan is answered with counts, not {other:?}"),
    }
}

fn up(node: rowen_state::NodeId) -> NodeReport {
    NodeReport {
        node,
        boot_id: "boot".into(),
        addr: "127.0.0.1".into(),
        ports: vec![29_500],
        healthy: GpuMask::first(64),
        simulated: true,
        version: String::new(),
        folder: String::new(),
        said_ms: 0,
        tasks: Vec::new(),
    }
}

fn job(
    workers: u32,
    claim: &Claim,
    priority: u32,
    required: Option<Level>,
    preferred: Option<Level>,
) -> JobSpec {
    JobSpec {
        name: "gang".into(),
        tenant: "bench".into(),
        queue: "default".into(),
        priority,
        workers,
        processes_per_worker: 1,
        resources: Resources {
            gpus: claim.gpus,
            gpu_model: claim.model.clone(),
            cpus: claim.cpus,
            memory_mib: claim.memory_mib,
        },
        required,
        preferred,
        command: vec!["true".into()],
        env: BTreeMap::new(),
        working_dir: String::new(),
        time_limit_ms: 0,
        notice_ms: 0,
        restarts: 0,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    }
}
