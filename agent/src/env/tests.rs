//! The whole environment of a few processes.

use std::{collections::BTreeMap, path::Path};

use expect_test::{Expect, expect};
use rowen_api::v1::{DesiredTask, Epoch, Owner, OwnerKind, Rendezvous};

use super::{Node, build};

#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn check(task: &DesiredTask, simulated: bool, port: u16, local: u32, expect: Expect) {
    let uuids = (0..8).map(|gpu| (gpu, format!("GPU-{gpu}"))).collect();
    let base = BTreeMap::from([("PATH".to_string(), "/bin".to_string())]);
    let node =
        Node { name: "node12", addr: "10.0.0.12", gpu_uuids: &uuids, simulated, base: &base };
    let env = build(task, &node, Path::new("/d/tasks/j17-a2-r1"), port, local);
    let lines = env.iter().map(|(name, value)| format!("{name}={value}\n"));
    expect.assert_eq(&lines.collect::<String>());
}

fn pairs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
}

fn gang() -> DesiredTask {
    let owner = Owner { kind: OwnerKind::Job.into(), id: 17, name: "train".to_string(), part: 2 };
    let hosts = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.1.1"].map(str::to_string);
    DesiredTask {
        allocation: 40,
        rank: 1,
        epoch: Some(Epoch { incarnation: 1, index: 900 }),
        owner: Some(owner),
        tenant: "lab".to_string(),
        queue: "main".to_string(),
        gpus: vec![0, 1, 2, 3],
        workers: 4,
        processes_per_worker: 2,
        rendezvous: Some(Rendezvous { hosts: hosts.to_vec(), port: 20500, nodes: Vec::new() }),
        cpus: 32,
        memory_mib: 65536,
        working_dir: "/home/x".to_string(),
        hints: pairs(&[("NCCL_IB_HCA", "mlx5_0"), ("NCCL_DEBUG", "WARN")]),
        env: pairs(&[
            ("NCCL_DEBUG", "INFO"),
            ("MASTER_PORT", "1234"),
            ("CUDA_VISIBLE_DEVICES", "7"),
            ("ROWEN_EPOCH", "99.99"),
            ("ROWEN_TASK_DIR", "/tmp"),
        ]),
        ..DesiredTask::default()
    }
}

#[test]
fn a_process_of_a_gang() {
    check(
        &gang(),
        false,
        0,
        1,
        expect![[r#"
        CUDA_VISIBLE_DEVICES=GPU-0,GPU-1,GPU-2,GPU-3
        GROUP_RANK=1
        JAX_COORDINATOR_ADDRESS=10.0.0.11:20500
        JAX_LOCAL_DEVICE_IDS=2,3
        LOCAL_RANK=1
        LOCAL_WORLD_SIZE=2
        MASTER_ADDR=10.0.0.11
        MASTER_PORT=1234
        NCCL_DEBUG=INFO
        NCCL_IB_HCA=mlx5_0
        PATH=/bin
        PET_MASTER_ADDR=10.0.0.11
        PET_MASTER_PORT=20500
        PET_NNODES=4
        PET_NODE_RANK=1
        PET_NPROC_PER_NODE=2
        RANK=3
        ROWEN_ATTEMPT=2
        ROWEN_EPOCH=1.900
        ROWEN_GPUS=0,1,2,3
        ROWEN_JOB_ID=17
        ROWEN_JOB_NAME=train
        ROWEN_NODE=node12
        ROWEN_NOTICE_FILE=/d/tasks/j17-a2-r1/notice.json
        ROWEN_QUEUE=main
        ROWEN_RANK=1
        ROWEN_TASK_DIR=/d/tasks/j17-a2-r1
        ROWEN_TENANT=lab
        ROWEN_WORKERS=4
        SLURMD_NODENAME=node12
        SLURM_CPUS_ON_NODE=32
        SLURM_CPUS_PER_TASK=16
        SLURM_GPUS_ON_NODE=4
        SLURM_JOBID=17
        SLURM_JOB_ACCOUNT=lab
        SLURM_JOB_ID=17
        SLURM_JOB_NAME=train
        SLURM_JOB_NODELIST=10.0.0.[11-13],10.0.1.1
        SLURM_JOB_NUM_NODES=4
        SLURM_JOB_PARTITION=main
        SLURM_LOCALID=1
        SLURM_MEM_PER_NODE=65536
        SLURM_NNODES=4
        SLURM_NODEID=1
        SLURM_NODELIST=10.0.0.[11-13],10.0.1.1
        SLURM_NPROCS=8
        SLURM_NTASKS=8
        SLURM_NTASKS_PER_NODE=2
        SLURM_PROCID=3
        SLURM_RESTART_COUNT=1
        SLURM_STEP_ID=0
        SLURM_STEP_NODELIST=10.0.0.[11-13],10.0.1.1
        SLURM_STEP_NUM_NODES=4
        SLURM_STEP_NUM_TASKS=8
        SLURM_STEP_TASKS_PER_NODE=2(x4)
        SLURM_SUBMIT_DIR=/home/x
        SLURM_TASKS_PER_NODE=2(x4)
        WORLD_SIZE=8
    "#]],
    );
}

#[test]
fn an_instance_of_a_filler() {
    let owner = Owner { kind: OwnerKind::Filler.into(), id: 3, name: "chat".to_string(), part: 12 };
    let task = DesiredTask {
        allocation: 41,
        epoch: Some(Epoch { incarnation: 1, index: 901 }),
        owner: Some(owner),
        gpus: vec![5],
        workers: 1,
        processes_per_worker: 1,
        ..DesiredTask::default()
    };
    check(
        &task,
        true,
        20501,
        0,
        expect![[r#"
        CUDA_VISIBLE_DEVICES=GPU-5
        GROUP_RANK=0
        LOCAL_RANK=0
        LOCAL_WORLD_SIZE=1
        PATH=/bin
        PET_NNODES=1
        PET_NODE_RANK=0
        PET_NPROC_PER_NODE=1
        RANK=0
        ROWEN_EPOCH=1.901
        ROWEN_FILLER=chat
        ROWEN_GPUS=5
        ROWEN_INSTANCE=12
        ROWEN_NODE=node12
        ROWEN_NOTICE_FILE=/d/tasks/j17-a2-r1/notice.json
        ROWEN_PORT=20501
        ROWEN_QUEUE=
        ROWEN_RANK=0
        ROWEN_TASK_DIR=/d/tasks/j17-a2-r1
        ROWEN_TENANT=
        ROWEN_WORKERS=1
        WORLD_SIZE=1
    "#]],
    );
}

#[test]
fn a_framework_gets_all_gpus_of_a_lone_process() {
    let task = DesiredTask { processes_per_worker: 1, ..gang() };
    let uuids = BTreeMap::new();
    let base = BTreeMap::new();
    let node = Node { name: "n", addr: "h", gpu_uuids: &uuids, simulated: false, base: &base };
    let env = build(&task, &node, Path::new("/d"), 0, 0);
    assert_eq!(env["JAX_LOCAL_DEVICE_IDS"], "0,1,2,3");
    assert_eq!(env["PET_NPROC_PER_NODE"], "4");
    assert_eq!(env["JAX_COORDINATOR_ADDRESS"], "10.0.0.11:20500");
}
