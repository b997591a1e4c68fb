//! What processes and the machine have used, from /proc.

use anyhow::{Context, Result};

/// Clock ticks a second, in which Linux tells CPU time to processes, on every architecture.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds of a process, all its threads, in user and kernel.
pub(super) fn cpu_s(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    cpu_of(&stat).with_context(|| format!("/proc/{pid}/stat reads otherwise than known"))
}

/// The process's name may hold blanks; what follows it is numbered from 3 in proc(5).
fn cpu_of(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let (user, kernel) = (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?);
    Some((user + kernel) / TICKS_PER_S)
}

/// Memory of a process that is not swapped out, in MiB.
pub(super) fn resident_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// CPU seconds that all processes of the machine have used.
pub(super) fn machine_cpu_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((ticks.iter().take(7).sum::<f64>() - idle) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_is_no_field() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 1 1 20 0 4 0";
        assert_eq!(cpu_of(stat), Some(2.0));
        assert_eq!(cpu_of("nonsense"), None);
    }

    #[test]
    fn our_own_time_counts() {
        let own = std::process::id();
        assert!(cpu_s(own).unwrap() >= 0.0);
        assert!(resident_mib(own).unwrap() > 1.0);
        assert!(machine_cpu_s().unwrap() > cpu_s(own).unwrap());
    }
}
