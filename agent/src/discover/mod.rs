//! Which GPUs this node has.
//!
//! Owns asking CUDA and NVML, in a child process (a driver too old for a
//! symbol makes the binding panic, a broken one may crash), and pretending.
//! Never fails: a node without GPUs, or without drivers, has none.

mod cuda;
mod nvml;
mod watch;

use std::{io::Write, path::Path, process::ExitCode, time::Duration};

use rowen_api::v1;
use serde::{Deserialize, Serialize};

use crate::Simulate;

pub use watch::FAULTS_FILE;
pub(crate) use watch::run as watch;

/// Loading the driver on a machine with many GPUs takes seconds.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovery {
    /// By ordinal, which follows the PCI bus.
    pub gpus: Vec<Gpu>,
    /// Why there are none, or what could not be asked.
    pub note: Option<String>,
}

/// One GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Position on the PCI bus.
    pub ordinal: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// As the driver calls it.
    pub model: String,
    /// Its memory.
    pub memory_mib: u64,
    /// `domain:bus:device.function`.
    pub pci_bus_id: String,
    /// Ordinals it has NVLink to, through switches included.
    pub nvlink_peers: Vec<u32>,
    /// Why it should not be used; empty: healthy.
    pub trouble: String,
}

/// Asks the machine. `exe` is run as `<exe> probe-gpus`.
pub async fn discover(exe: &Path) -> Discovery {
    let mut command = tokio::process::Command::new(exe);
    // What limits the agent's own sight must not limit the node's.
    command.arg("probe-gpus").env_remove("CUDA_VISIBLE_DEVICES").kill_on_drop(true);
    let output = tokio::time::timeout(PROBE_LIMIT, command.output()).await;
    let none = |note: String| Discovery { gpus: Vec::new(), note: Some(note) };
    match output {
        Err(_) => none(format!("no GPU: the probe hung for {} s", PROBE_LIMIT.as_secs())),
        Ok(Err(error)) => none(format!("no GPU: {} could not be run: {error}", exe.display())),
        Ok(Ok(output)) => serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("nothing").to_string();
            none(format!("no GPU: the probe ended with {} and said: {last}", output.status))
        }),
    }
}

/// What `<exe> probe-gpus` does: prints a [`Discovery`] as JSON; with `watch` behind it, how the
/// GPUs are, a line at a time, for as long as somebody reads.
pub fn probe_main() -> ExitCode {
    if std::env::args().nth(2).is_some_and(|word| word == "watch") {
        return watch::watch_main();
    }
    let found = look();
    let written = serde_json::to_vec(&found)
        .map_err(std::io::Error::from)
        .and_then(|json| std::io::stdout().write_all(&json));
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// NVML knows health and links, CUDA what programs will be able to use.
fn look() -> Discovery {
    merge(nvml::look(), cuda::look())
}

type Found = Result<Vec<Gpu>, String>;

/// Found at the start alone: NVML does not know it, so it never takes it back.
const UNSEEN: &str = "CUDA does not see it";

fn merge(nvml: Found, cuda: Found) -> Discovery {
    match (nvml, cuda) {
        (Err(nvml), Err(cuda)) => {
            Discovery { gpus: Vec::new(), note: Some(format!("no GPU: {nvml}; {cuda}")) }
        }
        (Ok(gpus), Err(cuda)) => {
            Discovery { note: Some(format!("GPUs by NVML alone: {cuda}")), gpus }
        }
        (Err(nvml), Ok(gpus)) => {
            Discovery { note: Some(format!("GPUs by CUDA alone, health unknown: {nvml}")), gpus }
        }
        (Ok(mut gpus), Ok(usable)) => {
            for gpu in &mut gpus {
                let seen = usable.iter().any(|other| other.uuid.eq_ignore_ascii_case(&gpu.uuid));
                if !seen && gpu.trouble.is_empty() {
                    gpu.trouble = UNSEEN.to_string();
                }
            }
            let note = gpus.is_empty().then(|| "no GPU: the driver lists none".to_string());
            Discovery { gpus, note }
        }
    }
}

/// Ordinals by PCI bus id, whatever order the driver lists them in; `links`
/// names peers by bus id.
fn ordered(mut gpus: Vec<(Gpu, Vec<String>)>) -> Vec<Gpu> {
    gpus.sort_by(|(a, _), (b, _)| a.pci_bus_id.cmp(&b.pci_bus_id));
    let ids: Vec<String> = gpus.iter().map(|(gpu, _)| gpu.pci_bus_id.clone()).collect();
    let ordinal = |id: &String| ids.iter().position(|other| other == id);
    let mut out = Vec::new();
    for (at, (mut gpu, links)) in gpus.into_iter().enumerate() {
        let mut peers: Vec<usize> =
            links.iter().filter_map(ordinal).filter(|peer| *peer != at).collect();
        peers.sort_unstable();
        peers.dedup();
        gpu.ordinal = u32::try_from(at).unwrap_or(u32::MAX);
        gpu.nvlink_peers = peers.into_iter().filter_map(|peer| u32::try_from(peer).ok()).collect();
        out.push(gpu);
    }
    out
}

/// `0000:3B:00.0` and `00000000:3b:00.0` are one.
fn bus_id(text: &str) -> String {
    let lower = text.trim_end_matches('\0').to_ascii_lowercase();
    let parts = lower.split_once(':');
    let Some((domain, rest)) = parts else { return lower };
    let domain = u32::from_str_radix(domain, 16).unwrap_or(0);
    format!("{domain:08x}:{rest}")
}

/// GPUs that are not there, all linked with each other.
pub fn simulated(node: &str, simulate: &Simulate) -> Vec<v1::Gpu> {
    let all = 0..u32::from(simulate.gpus);
    let gpu = |ordinal: u32| v1::Gpu {
        ordinal,
        uuid: format!("SIM-{node}-{ordinal}"),
        model: simulate.model.clone(),
        memory_mib: simulate.memory_mib,
        pci_bus_id: format!("00000000:{:02x}:00.0", ordinal + 1),
        nvlink_peers: all.clone().filter(|other| *other != ordinal).collect(),
        healthy: true,
        health: String::new(),
    };
    all.clone().map(gpu).collect()
}

/// As the leader is told.
pub(crate) fn wire(gpu: Gpu) -> v1::Gpu {
    v1::Gpu {
        ordinal: gpu.ordinal,
        uuid: gpu.uuid,
        model: gpu.model,
        memory_mib: gpu.memory_mib,
        pci_bus_id: gpu.pci_bus_id,
        nvlink_peers: gpu.nvlink_peers,
        healthy: gpu.trouble.is_empty(),
        health: gpu.trouble,
    }
}

#[cfg(test)]
mod tests;
