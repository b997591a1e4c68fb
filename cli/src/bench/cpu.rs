//! CPU time that processes have used, from /proc: where everything shares few cores, it bounds the
//! rate, and unlike the rate it hardly changes with what else the machine does.
//!
//! Never samples or profiles: two readings and their difference.

use std::fs;

use anyhow::{Context, Result};

/// USER_HZ is 100 wherever Linux runs a GPU.
const TICK_US: f64 = 10_000.0;

/// The processes of one side of a measurement; whoever reads is its client.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) leader: u32,
    pub(super) followers: Vec<u32>,
}

/// CPU time in microseconds, user and system.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cpu {
    pub(super) leader_us: f64,
    /// Of all of them together.
    pub(super) followers_us: f64,
    pub(super) client_us: f64,
}

impl Side {
    /// What each has used since it started.
    pub(super) fn used(&self) -> Result<Cpu> {
        let followers = self.followers.iter().map(|pid| used_us(*pid));
        Ok(Cpu {
            leader_us: used_us(self.leader)?,
            followers_us: followers.sum::<Result<f64>>()?,
            client_us: used_us(std::process::id())?,
        })
    }
}

impl Cpu {
    /// Adds what was used between two readings.
    pub(super) fn add_between(&mut self, before: Cpu, after: Cpu) {
        self.leader_us += after.leader_us - before.leader_us;
        self.followers_us += after.followers_us - before.followers_us;
        self.client_us += after.client_us - before.client_us;
    }
}

fn used_us(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = ticks(&text).with_context(|| format!("{path}: no CPU times in it"))?;
    Ok(ticks as f64 * TICK_US)
}

/// utime and stime of a stat line. The name before them may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    Some(times.next()?? + times.next()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 99";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a) S 1"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn work_is_counted() {
        let own = Side { leader: std::process::id(), followers: Vec::new() };
        let before = own.used().unwrap();
        let begun = std::time::Instant::now();
        let mut sum = 0_u64;
        // At least some ticks of 10 ms, however busy the machine is.
        while own.used().unwrap().leader_us - before.leader_us < 50_000.0 {
            sum = (0..100_000).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
            assert!(begun.elapsed().as_secs() < 60, "no CPU time was counted ({sum})");
        }
        let mut used = Cpu::default();
        used.add_between(before, own.used().unwrap());
        assert!(used.leader_us >= 50_000.0 && used.followers_us == 0.0, "{used:?}");
    }
}
