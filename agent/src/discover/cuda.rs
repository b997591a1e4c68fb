//! GPUs as the CUDA driver lists them.
//!
//! Owns the unsafe calls into libcuda, loaded at run time. Makes no context:
//! that would hold memory on every GPU. Runs in a child process alone.

use cudarc::driver::{result, sys};

use super::{Gpu, bus_id, ordered};

/// `Err` says why CUDA cannot be asked.
pub(super) fn look() -> Result<Vec<Gpu>, String> {
    // SAFETY: only tries to load the library.
    #[expect(unsafe_code, reason = "the driver's own interface")]
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return Err("libcuda is not installed".to_string());
    }
    let failed = |what: &str| {
        let what = what.to_string();
        move |error: result::DriverError| format!("CUDA: {what}: {:?}", error.0)
    };
    result::init().map_err(failed("cuInit"))?;
    let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
    let mut gpus = Vec::new();
    for index in 0..count {
        let device = result::device::get(index).map_err(failed("cuDeviceGet"))?;
        gpus.push((describe(device).map_err(failed("describing a GPU"))?, device));
    }
    let links: Vec<Vec<String>> = gpus
        .iter()
        .map(|(_, device)| {
            let linked =
                gpus.iter().filter(|(_, other)| other != device && linked(*device, *other));
            linked.map(|(gpu, _)| gpu.pci_bus_id.clone()).collect()
        })
        .collect();
    Ok(ordered(gpus.into_iter().map(|(gpu, _)| gpu).zip(links).collect()))
}

fn describe(device: sys::CUdevice) -> Result<Gpu, result::DriverError> {
    let uuid = result::device::get_uuid(device)?;
    // SAFETY: `device` came from cuDeviceGet.
    #[expect(unsafe_code, reason = "the driver's own interface")]
    let bytes = unsafe { result::device::total_mem(device)? };
    Ok(Gpu {
        uuid: format_uuid(uuid.bytes.map(|byte| byte.cast_unsigned())),
        model: result::device::get_name(device)?,
        memory_mib: bytes as u64 >> 20,
        pci_bus_id: pci(device)?,
        ..Gpu::default()
    })
}

fn pci(device: sys::CUdevice) -> Result<String, result::DriverError> {
    let mut text = [0_u8; 32];
    let length = 32;
    // SAFETY: the buffer is as long as the call is told, and ends with a zero.
    #[expect(unsafe_code, reason = "the driver's own interface")]
    unsafe {
        sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), length, device).result()?;
    }
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    Ok(bus_id(&String::from_utf8_lossy(&text[..end])))
}

/// Peer access with native atomics means NVLink (PCIe peers have none).
fn linked(from: sys::CUdevice, to: sys::CUdevice) -> bool {
    let attribute = sys::CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED;
    let mut value = 0;
    // SAFETY: both came from cuDeviceGet, `value` outlives the call.
    #[expect(unsafe_code, reason = "the driver's own interface")]
    let asked = unsafe { sys::cuDeviceGetP2PAttribute(&mut value, attribute, from, to) };
    asked.result().is_ok() && value != 0
}

/// As NVML and CUDA_VISIBLE_DEVICES write it.
pub(super) fn format_uuid(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("GPU-{a}-{b}-{c}-{d}-{e}")
}
