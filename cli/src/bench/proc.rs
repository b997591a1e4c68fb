//! What processes and the machine have used, from /proc.
//!
//! Never samples or profiles: whoever measures takes two readings and their difference.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks a second, in which Linux tells CPU time to processes, on every architecture.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds of a process, all its threads, in user and kernel.
pub(super) fn cpu_s(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    cpu_of(&stat).with_context(|| format!("{path}: no CPU times in it"))
}

/// utime and stime of a stat line. The name before them may hold blanks and parentheses; what
/// follows it is numbered from 3 in proc(5).
fn cpu_of(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    Some((times.next()?? + times.next()??) / TICKS_PER_S)
}

/// CPU seconds that all processes of the machine have used.
pub(super) fn machine_cpu_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((ticks.iter().take(7).sum::<f64>() - idle) / TICKS_PER_S)
}

/// Memory of a process that is not swapped out.
pub(super) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("the process has ended")?.trim().parse()?;
    Ok(kib * 1024)
}

/// The same in MiB.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    Ok(resident_bytes(pid)? as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 99";
        assert_eq!(cpu_of(stat), Some(3.0));
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 1 1 20 0 4 0";
        assert_eq!(cpu_of(stat), Some(2.0));
        assert_eq!(cpu_of("7 (a) S 1"), None);
        assert_eq!(cpu_of("nonsense"), None);
        assert_eq!(cpu_of(""), None);
    }

    #[test]
    fn our_own_time_counts() {
        let own = std::process::id();
        assert!(cpu_s(own).unwrap() >= 0.0);
        assert!(resident_mib(own).unwrap() > 1.0);
        assert!(machine_cpu_s().unwrap() > cpu_s(own).unwrap());
    }
}
