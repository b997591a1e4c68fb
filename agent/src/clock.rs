//! The two clocks: CLOCK_BOOTTIME for every decision, unix time for people.
//!
//! Never read by `core`, which gets the time as an argument.

use std::{fs, io};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, suspend included. Shims and the agent share it.
pub fn boottime_ms() -> u64 {
    read_ms(ClockId::CLOCK_BOOTTIME)
}

/// Milliseconds since 1970, only ever shown to people and tasks.
pub fn unix_ms() -> u64 {
    read_ms(ClockId::CLOCK_REALTIME)
}

/// Changes with every boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

fn read_ms(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("Linux has had both clocks since 2.6.39");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    seconds * 1000 + nanos / 1_000_000
}
