//! How the GPUs are while the agent runs.
//!
//! Owns a second child process that listens to NVML's events (a driver that crashes takes it along,
//! not the agent) and prints, on every event and every half minute, which GPUs are in trouble; and
//! for GPUs that are not there, a file in the agent's folder. Never decides what follows.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use rowen_api::v1;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc,
    time::sleep,
};

use super::{UNSEEN, nvml};

/// Between two looks without an event.
pub(super) const LOOK_MS: u32 = 30_000;
/// A child that has ended is started again after this: a driver is being loaded anew, say.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two looks into the file of simulated faults.
const SIMULATED_LOOK: Duration = Duration::from_millis(500);
/// Longest file of simulated faults.
const FILE_BYTES: usize = 64 << 10;
/// XIDs that say something of a program and nothing of the GPU it ran on, as NVIDIA's device
/// plugin for Kubernetes has them.
const OF_PROGRAMS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// The file with the faults of simulated GPUs, in the agent's folder: a line `ORDINAL WHAT`.
pub const FAULTS_FILE: &str = "gpu-faults";

/// What the child says of a GPU it sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) uuid: String,
    /// Empty: none.
    pub(super) trouble: String,
}

/// Which of `gpus` are in trouble, told whenever it was looked at; for as long as somebody listens.
pub(crate) async fn run(
    exe: PathBuf,
    simulated: Option<PathBuf>,
    gpus: Vec<v1::Gpu>,
    told: mpsc::Sender<v1::GpuHealth>,
) {
    if gpus.is_empty() {
        return;
    }
    match simulated {
        Some(dir) => simulate(&dir.join(FAULTS_FILE), &gpus, &told).await,
        None => loop {
            listen(&exe, &gpus, &told).await;
            sleep(AGAIN).await;
            if told.is_closed() {
                return;
            }
        },
    }
}

/// Until the child ends, or nobody listens.
async fn listen(exe: &Path, gpus: &[v1::Gpu], told: &mpsc::Sender<v1::GpuHealth>) {
    let mut command = tokio::process::Command::new(exe);
    command.args(["probe-gpus", "watch"]).env_remove("CUDA_VISIBLE_DEVICES").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return };
    let Some(stdout) = child.stdout.take() else { return };
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(seen) = serde_json::from_str::<Vec<Seen>>(&line) else { continue };
        if told.send(health(gpus, &seen)).await.is_err() {
            return;
        }
    }
}

/// A GPU that the driver no longer lists has fallen off the bus.
fn health(gpus: &[v1::Gpu], seen: &[Seen]) -> v1::GpuHealth {
    let of = |gpu: &v1::Gpu| {
        let found = seen.iter().find(|seen| seen.uuid.eq_ignore_ascii_case(&gpu.uuid));
        let gone = || String::from("the driver no longer lists it");
        let mut trouble = found.map_or_else(gone, |seen| seen.trouble.clone());
        if trouble.is_empty() && gpu.health == UNSEEN {
            trouble = UNSEEN.to_owned();
        }
        v1::GpuTrouble { ordinal: gpu.ordinal, trouble }
    };
    v1::GpuHealth { gpus: gpus.iter().map(of).collect() }
}

/// Told when the file changes, and at first.
async fn simulate(file: &Path, gpus: &[v1::Gpu], told: &mpsc::Sender<v1::GpuHealth>) {
    let mut last = None;
    loop {
        let mut text = fs::read_to_string(file).unwrap_or_default();
        text.truncate(text.floor_char_boundary(FILE_BYTES));
        let now = simulated(&text, gpus);
        if last.as_ref() != Some(&now) {
            last = Some(now.clone());
            if told.send(now).await.is_err() {
                return;
            }
        }
        sleep(SIMULATED_LOOK).await;
        if told.is_closed() {
            return;
        }
    }
}

fn simulated(text: &str, gpus: &[v1::Gpu]) -> v1::GpuHealth {
    let line = |line: &str| {
        let (ordinal, what) = line.split_once(' ').unwrap_or((line, "simulated fault"));
        Some((ordinal.parse::<u32>().ok()?, what.trim().to_owned()))
    };
    let faults: BTreeMap<u32, String> = text.lines().filter_map(line).collect();
    let of = |gpu: &v1::Gpu| {
        let trouble = faults.get(&gpu.ordinal).cloned().unwrap_or_default();
        v1::GpuTrouble { ordinal: gpu.ordinal, trouble }
    };
    v1::GpuHealth { gpus: gpus.iter().map(of).collect() }
}

/// What `<exe> probe-gpus watch` does, until its reader is gone.
pub(super) fn watch_main() -> ExitCode {
    let mut xids: BTreeMap<String, u64> = BTreeMap::new();
    let ended = nvml::watch(LOOK_MS, |event, mut seen| {
        if let Some((uuid, xid)) = event.filter(|(_, xid)| !OF_PROGRAMS.contains(xid)) {
            xids.insert(uuid, xid);
        }
        for gpu in &mut seen {
            if let (true, Some(xid)) = (gpu.trouble.is_empty(), xids.get(&gpu.uuid)) {
                gpu.trouble = format!("XID {xid}");
            }
        }
        let line = serde_json::to_string(&seen).expect("strings always serialise");
        writeln!(std::io::stdout(), "{line}").is_ok()
    });
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus() -> Vec<v1::Gpu> {
        let gpu =
            |ordinal| v1::Gpu { ordinal, uuid: format!("GPU-{ordinal}"), ..v1::Gpu::default() };
        (0..3).map(gpu).collect()
    }

    fn check(health: &v1::GpuHealth, expect: [&str; 3]) {
        let said: Vec<_> = health.gpus.iter().map(|gpu| gpu.trouble.as_str()).collect();
        assert_eq!(said, expect);
    }

    #[test]
    fn a_gpu_that_is_no_longer_listed_is_in_trouble() {
        let seen = |uuid: &str, trouble: &str| Seen { uuid: uuid.into(), trouble: trouble.into() };
        let all = [seen("gpu-2", "XID 79"), seen("GPU-0", "")];
        check(&health(&gpus(), &all), ["", "the driver no longer lists it", "XID 79"]);
    }

    #[test]
    fn simulated_faults_are_lines_of_a_file() {
        check(&simulated("", &gpus()), ["", "", ""]);
        check(
            &simulated("1 XID 79\nnonsense\n2\n7 x\n", &gpus()),
            ["", "XID 79", "simulated fault"],
        );
    }
}
