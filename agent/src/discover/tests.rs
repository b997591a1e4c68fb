//! What is made of what CUDA and NVML say.

use super::*;

fn gpu(uuid: &str) -> Gpu {
    Gpu { uuid: uuid.to_string(), ..Gpu::default() }
}

#[test]
fn no_library_is_no_gpu_with_both_reasons() {
    let found = merge(Err("no NVML".to_string()), Err("no CUDA".to_string()));
    assert_eq!(found.gpus, []);
    assert_eq!(found.note.unwrap(), "no GPU: no NVML; no CUDA");
}

#[test]
fn a_gpu_that_cuda_does_not_see_is_in_trouble() {
    let found = merge(Ok(vec![gpu("GPU-aa"), gpu("GPU-bb")]), Ok(vec![gpu("gpu-AA")]));
    let trouble: Vec<_> = found.gpus.iter().map(|gpu| gpu.trouble.as_str()).collect();
    assert_eq!(trouble, ["", "CUDA does not see it"]);
    assert!(!wire(found.gpus[1].clone()).healthy);
}

#[test]
fn bus_ids_of_all_widths_are_one() {
    assert_eq!(bus_id("0000:3B:00.0\0"), bus_id("00000000:3b:00.0"));
}

#[test]
fn uuids_are_written_as_nvml_does() {
    let bytes = std::array::from_fn(|at| u8::try_from(at * 16 + at).unwrap());
    assert_eq!(cuda::format_uuid(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
}

#[test]
fn simulated_gpus_say_so() {
    let simulate = Simulate { gpus: 3, model: "h100".to_string(), memory_mib: 81_920 };
    let gpus = simulated("n1", &simulate);
    assert_eq!(gpus[2].uuid, "SIM-n1-2");
    assert_eq!(gpus[2].nvlink_peers, [0, 1]);
    assert!(gpus.iter().all(|gpu| gpu.healthy && gpu.model == "h100"));
}
