//! GPUs as NVML lists them, with links and health.
//!
//! Owns the questions to NVML. A question that this GPU or driver does not
//! support is skipped: only what is known to be wrong counts as trouble.

use std::collections::BTreeMap;

use nvml_wrapper::{
    Device, Nvml,
    bitmasks::event::EventTypes,
    enum_wrappers::device::{EccCounter, MemoryError},
    enums::event::XidError,
    error::NvmlError,
};

use super::{Gpu, bus_id, ordered, watch::Seen};

/// NVLinks of one GPU, at most.
const LINKS_MAX: u32 = 18;

/// `Err` says why NVML cannot be asked.
pub(super) fn look() -> Result<Vec<Gpu>, String> {
    let nvml = Nvml::init().map_err(|error| format!("NVML: {error}"))?;
    let count = nvml.device_count().map_err(|error| format!("NVML: {error}"))?;
    let mut gpus = Vec::new();
    for index in 0..count {
        // One GPU that fell off the bus must not hide the others.
        if let Ok(gpu) = nvml.device_by_index(index).and_then(|device| describe(&device)) {
            gpus.push(gpu);
        }
    }
    Ok(ordered(through_switches(gpus)))
}

fn describe(device: &Device<'_>) -> Result<(Gpu, Vec<String>), nvml_wrapper::error::NvmlError> {
    let gpu = Gpu {
        uuid: device.uuid()?,
        model: device.name()?,
        memory_mib: device.memory_info()?.total >> 20,
        pci_bus_id: bus_id(&device.pci_info()?.bus_id),
        trouble: trouble(device).unwrap_or_default(),
        ..Gpu::default()
    };
    Ok((gpu, remotes(device)))
}

/// Bus ids at the other ends of its active NVLinks: GPUs or switches.
fn remotes(device: &Device<'_>) -> Vec<String> {
    let links = (0..LINKS_MAX).map(|link| device.link_wrapper_for(link));
    let active = links.filter(|link| link.is_active().unwrap_or(false));
    active.filter_map(|link| Some(bus_id(&link.remote_pci_info().ok()?.bus_id))).collect()
}

/// GPUs that share a switch are peers.
fn through_switches(gpus: Vec<(Gpu, Vec<String>)>) -> Vec<(Gpu, Vec<String>)> {
    let mut at: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (gpu, remotes) in &gpus {
        for remote in remotes {
            at.entry(remote.clone()).or_default().push(gpu.pci_bus_id.clone());
        }
    }
    let peers = |remotes: Vec<String>| {
        let shared = remotes.iter().filter_map(|remote| at.get(remote)).flatten().cloned();
        shared.chain(remotes.iter().cloned()).collect()
    };
    gpus.into_iter().map(|(gpu, remotes)| (gpu, peers(remotes))).collect()
}

/// Calls `tell` with each critical XID that comes, and with how the GPUs are: on every event, and
/// every `look_ms`. Ends when `tell` says so; `Err`: NVML cannot be asked any more.
pub(super) fn watch(
    look_ms: u32,
    mut tell: impl FnMut(Option<(String, u64)>, Vec<Seen>) -> bool,
) -> Result<(), NvmlError> {
    let nvml = Nvml::init()?;
    let mut events = nvml.create_event_set()?;
    for index in 0..nvml.device_count()? {
        // One that knows no events is looked at all the same.
        let Ok(device) = nvml.device_by_index(index) else { continue };
        let known = device.supported_event_types().is_ok_and(|types| types.contains(XIDS));
        if known {
            events = device.register_events(XIDS, events).map_err(|error| error.error)?;
        }
    }
    while {
        let event = match events.wait(look_ms) {
            Ok(event) => event.device.uuid().ok().zip(event.event_data.map(xid)),
            Err(NvmlError::Timeout) => None,
            Err(error) => return Err(error),
        };
        tell(event, seen(&nvml)?)
    } {}
    Ok(())
}

const XIDS: EventTypes = EventTypes::CRITICAL_XID_ERROR;

fn xid(error: XidError) -> u64 {
    match error {
        XidError::Value(number) => number,
        XidError::Unknown => 999, // as NVML has it
    }
}

fn seen(nvml: &Nvml) -> Result<Vec<Seen>, NvmlError> {
    let devices = (0..nvml.device_count()?).filter_map(|index| nvml.device_by_index(index).ok());
    let of = |device: Device<'_>| {
        let trouble = trouble(&device).unwrap_or_default();
        Some(Seen { uuid: device.uuid().ok()?, trouble })
    };
    Ok(devices.filter_map(of).collect())
}

fn trouble(device: &Device<'_>) -> Option<String> {
    let uncorrected =
        device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).unwrap_or(0);
    if uncorrected > 0 {
        return Some(format!("{uncorrected} uncorrected ECC errors since the driver was loaded"));
    }
    if device.are_pages_pending_retired().unwrap_or(false) {
        return Some("memory pages wait to be retired; reset the GPU".to_string());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Gpu, ordered, through_switches};

    #[test]
    fn gpus_behind_one_switch_are_peers() {
        let gpu = |id: &str| Gpu { pci_bus_id: id.to_string(), ..Gpu::default() };
        let found = vec![
            (gpu("c"), vec!["switch".to_string()]),
            (gpu("a"), vec!["switch".to_string(), "b".to_string()]),
            (gpu("b"), vec!["a".to_string()]),
        ];
        let peers: Vec<_> =
            ordered(through_switches(found)).into_iter().map(|gpu| gpu.nvlink_peers).collect();
        assert_eq!(peers, [vec![1, 2], vec![0], vec![0]]);
    }
}
