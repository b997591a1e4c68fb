//! What the machine itself takes: no scheduler can be quicker.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::demo::boottime_ns;

/// From before fork and exec of our own executable to its first instruction, in milliseconds.
pub(super) fn process_starts(exe: &str, folder: &Path, count: u32) -> Result<Vec<f64>> {
    let mut samples = Vec::new();
    for _ in 0..count {
        let begun_ns = boottime_ns();
        let status = Command::new(exe)
            .args(["demo-worker", "--stamp"])
            .arg(folder)
            .env_remove("ROWEN_JOB_ID")
            .stdin(Stdio::null())
            .status()?;
        ensure!(status.success(), "a bare demo-worker failed: {status}");
        let stamp = std::fs::read_to_string(folder.join("bare"))?;
        let stamp: u64 = stamp.parse().context("a stamp is no number")?;
        samples.push(stamp.saturating_sub(begun_ns) as f64 / 1e6);
    }
    Ok(samples)
}

/// A small append with fdatasync, as a log entry needs at least, in milliseconds.
pub(super) fn synced_writes(folder: &Path, count: u32) -> Result<Vec<f64>> {
    let mut file = File::create(folder.join("synced"))?;
    // Zero-filled first, like the log: only then does fdatasync not wait for the file's size.
    file.write_all(&vec![0u8; count as usize * 512])?;
    file.sync_all()?;
    let mut samples = Vec::new();
    for at in 0..count {
        let begun = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1u8; 512], u64::from(at) * 512)?;
        file.sync_data()?;
        samples.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(samples)
}
