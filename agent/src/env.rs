//! The environment of a task's processes.
//!
//! Owns every variable Rowen sets and who reads it. A pure function: it never
//! reads the agent's own environment, which arrives as `base`.

use std::{collections::BTreeMap, path::Path};

use rowen_api::v1::{DesiredTask, OwnerKind, Rendezvous};

use crate::{hostlist, spec::NOTICE_FILE};

/// Variables of the agent that tasks inherit; nothing else leaks into them.
pub const INHERITED: [&str; 9] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"];

/// What the node adds to a task.
#[derive(Debug)]
pub struct Node<'a> {
    /// Its name in the fabric.
    pub name: &'a str,
    /// Where other nodes reach it.
    pub addr: &'a str,
    /// UUID of each GPU, by ordinal.
    pub gpu_uuids: &'a BTreeMap<u32, String>,
    /// The GPUs are pretended.
    pub simulated: bool,
    /// What tasks inherit, see [`INHERITED`].
    pub base: &'a BTreeMap<String, String>,
}

type Env = BTreeMap<String, String>;

/// The environment of process `local` of `task`. The job's own variables win
/// over everything but those that fence it to its GPUs and its folder.
pub fn build(task: &DesiredTask, node: &Node<'_>, dir: &Path, port: u16, local: u32) -> Env {
    let place = Place::new(task, node, local);
    let mut env = node.base.clone();
    ranks(&mut env, &place);
    torchrun(&mut env, task, &place);
    jax(&mut env, task, node, &place);
    slurm(&mut env, task, node, &place);
    rowen(&mut env, task, node, port);
    env.extend(task.hints.clone());
    env.extend(task.env.clone());
    fencing(&mut env, task, node, dir);
    env
}

/// Where a process stands in its gang.
struct Place<'a> {
    worker: u32,
    workers: u32,
    per_worker: u32,
    local: u32,
    rank: u32,
    world: u32,
    /// Host and port of rank 0.
    master: Option<(&'a str, u32)>,
    hosts: &'a [String],
}

impl<'a> Place<'a> {
    fn new(task: &'a DesiredTask, node: &'a Node<'a>, local: u32) -> Self {
        let per_worker = task.processes_per_worker.max(1);
        let workers = task.workers.max(1);
        let rendezvous: Option<&Rendezvous> = task.rendezvous.as_ref();
        let hosts = rendezvous.map_or(&[][..], |rendezvous| &rendezvous.hosts);
        let host = hosts.first().map_or(node.addr, String::as_str);
        Place {
            worker: task.rank,
            workers,
            per_worker,
            local,
            rank: task.rank * per_worker + local,
            world: workers * per_worker,
            master: rendezvous.map(|rendezvous| (host, rendezvous.port)),
            hosts,
        }
    }
}

/// torch.distributed's `env://`, which most frameworks have come to read.
fn ranks(env: &mut Env, place: &Place<'_>) {
    set(env, "RANK", place.rank);
    set(env, "WORLD_SIZE", place.world);
    set(env, "LOCAL_RANK", place.local);
    set(env, "LOCAL_WORLD_SIZE", place.per_worker);
    set(env, "GROUP_RANK", place.worker);
    if let Some((host, port)) = place.master {
        set(env, "MASTER_ADDR", host);
        set(env, "MASTER_PORT", port);
    }
}

/// torchrun takes each of its options from `PET_<OPTION>` where the command
/// line does not give it. It starts the processes of its node itself: one a
/// GPU, unless Rowen was asked to start several.
fn torchrun(env: &mut Env, task: &DesiredTask, place: &Place<'_>) {
    let gpus = u32::try_from(task.gpus.len()).unwrap_or(0).max(1);
    set(env, "PET_NNODES", place.workers);
    set(env, "PET_NODE_RANK", place.worker);
    set(env, "PET_NPROC_PER_NODE", if place.per_worker > 1 { place.per_worker } else { gpus });
    if let Some((host, port)) = place.master {
        set(env, "PET_MASTER_ADDR", host);
        set(env, "PET_MASTER_PORT", port);
    }
}

/// `jax.distributed.initialize()` finds a Slurm cluster by SLURM_JOB_ID and
/// reads SLURM_STEP_NODELIST (its first host is the coordinator), SLURM_NTASKS,
/// SLURM_PROCID, SLURM_LOCALID, SLURM_STEP_NUM_NODES, and derives a port from
/// the job id, unless JAX_COORDINATOR_ADDRESS says better. Under Slurm it
/// would then give each process one GPU only, unless told which are its own.
fn jax(env: &mut Env, task: &DesiredTask, node: &Node<'_>, place: &Place<'_>) {
    if let Some((host, port)) = place.master {
        set(env, "JAX_COORDINATOR_ADDRESS", format!("{host}:{port}"));
    }
    let gpus = u32::try_from(task.gpus.len()).unwrap_or(0);
    let each = gpus / place.per_worker;
    if each > 1 && gpus.is_multiple_of(place.per_worker) && !node.simulated {
        let first = place.local * each;
        set(env, "JAX_LOCAL_DEVICE_IDS", join(first..first + each));
    }
}

/// JAX (see above); Lightning's SLURMEnvironment: SLURM_NTASKS and not a job
/// name of `bash` or `interactive`, SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID,
/// SLURM_NODELIST, SLURM_NNODES and SLURM_NTASKS_PER_NODE (checked against the
/// Trainer's), SLURM_JOB_ID (its last digits make a port where MASTER_PORT is
/// missing); submitit: SLURM_JOB_ID, SLURM_NTASKS, SLURM_JOB_NUM_NODES,
/// SLURM_NODEID, SLURM_JOB_NODELIST, SLURM_PROCID, SLURM_LOCALID. The rest is
/// what scripts written for Slurm print or use.
fn slurm(env: &mut Env, task: &DesiredTask, node: &Node<'_>, place: &Place<'_>) {
    let Some(owner) = task.owner.as_ref().filter(|owner| owner.kind() == OwnerKind::Job) else {
        return;
    };
    let own = [node.addr.to_string()];
    let hosts = hostlist::compress(if place.hosts.is_empty() { &own } else { place.hosts });
    for name in ["SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_STEP_NODELIST"] {
        set(env, name, &hosts);
    }
    for name in ["SLURM_JOB_ID", "SLURM_JOBID"] {
        set(env, name, owner.id);
    }
    for name in ["SLURM_NTASKS", "SLURM_NPROCS", "SLURM_STEP_NUM_TASKS"] {
        set(env, name, place.world);
    }
    for name in ["SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_STEP_NUM_NODES"] {
        set(env, name, place.workers);
    }
    let per_node = match place.workers {
        1 => place.per_worker.to_string(),
        workers => format!("{}(x{workers})", place.per_worker),
    };
    set(env, "SLURM_TASKS_PER_NODE", &per_node);
    set(env, "SLURM_STEP_TASKS_PER_NODE", &per_node);
    set(env, "SLURM_NTASKS_PER_NODE", place.per_worker);
    set(env, "SLURM_STEP_ID", 0);
    set(env, "SLURM_PROCID", place.rank);
    set(env, "SLURM_LOCALID", place.local);
    set(env, "SLURM_NODEID", place.worker);
    set(env, "SLURMD_NODENAME", node.name);
    set(env, "SLURM_JOB_NAME", &owner.name);
    set(env, "SLURM_JOB_PARTITION", &task.queue);
    set(env, "SLURM_JOB_ACCOUNT", &task.tenant);
    set(env, "SLURM_RESTART_COUNT", owner.part.saturating_sub(1));
    set(env, "SLURM_GPUS_ON_NODE", task.gpus.len());
    set(env, "SLURM_SUBMIT_DIR", &task.working_dir);
    if task.cpus > 0 {
        set(env, "SLURM_CPUS_ON_NODE", task.cpus);
        set(env, "SLURM_CPUS_PER_TASK", (task.cpus / place.per_worker).max(1));
    }
    if task.memory_mib > 0 {
        set(env, "SLURM_MEM_PER_NODE", task.memory_mib);
    }
}

/// Rowen's own words.
fn rowen(env: &mut Env, task: &DesiredTask, node: &Node<'_>, port: u16) {
    set(env, "ROWEN_NODE", node.name);
    set(env, "ROWEN_TENANT", &task.tenant);
    set(env, "ROWEN_QUEUE", &task.queue);
    set(env, "ROWEN_RANK", task.rank);
    set(env, "ROWEN_WORKERS", task.workers.max(1));
    set(env, "ROWEN_GPUS", join(task.gpus.iter().copied()));
    if port != 0 {
        set(env, "ROWEN_PORT", port);
    }
    let Some(owner) = &task.owner else { return };
    if owner.kind() == OwnerKind::Filler {
        set(env, "ROWEN_FILLER", &owner.name);
        set(env, "ROWEN_INSTANCE", owner.part);
    } else {
        set(env, "ROWEN_JOB_ID", owner.id);
        set(env, "ROWEN_JOB_NAME", &owner.name);
        set(env, "ROWEN_ATTEMPT", owner.part);
    }
}

/// What keeps a task on its GPUs and in its folder. The folder also marks its
/// processes, so that they are found when their shim is dead.
fn fencing(env: &mut Env, task: &DesiredTask, node: &Node<'_>, dir: &Path) {
    let epoch = task.epoch.unwrap_or_default();
    set(env, "ROWEN_EPOCH", format!("{}.{}", epoch.incarnation, epoch.index));
    set(env, "ROWEN_TASK_DIR", dir.display());
    set(env, "ROWEN_NOTICE_FILE", dir.join(NOTICE_FILE).display());
    let uuid = |gpu: &u32| node.gpu_uuids.get(gpu).cloned().unwrap_or_else(|| gpu.to_string());
    set(env, "CUDA_VISIBLE_DEVICES", join(task.gpus.iter().map(uuid)));
}

fn set(env: &mut Env, name: &str, value: impl ToString) {
    env.insert(name.to_string(), value.to_string());
}

fn join(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
