//! Numbers and messages as words that people read: spans, sums, commands, owners, node lists.

use std::time::{SystemTime, UNIX_EPOCH};

use rowen_api::v1::{JobState, Owner, OwnerKind};

/// The word of a job's state, in tables and JSON alike.
pub(crate) fn job_state(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Holding => "holding",
        JobState::Starting => "starting",
        JobState::Running => "running",
        JobState::Stopping => "stopping",
        JobState::Completed => "completed",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// No task of it will ever run again.
pub(crate) fn has_ended(state: JobState) -> bool {
    matches!(state, JobState::Completed | JobState::Failed | JobState::Cancelled)
}

/// `job 7 train` or `filler chat/3`.
pub(crate) fn owner(owner: &Owner) -> String {
    match owner.kind() {
        OwnerKind::Filler => format!("filler {}/{}", owner.name, owner.part),
        _ => format!("job {} {}", owner.id, owner.name),
    }
}

/// The word of an owner's kind.
pub(crate) fn owner_kind(kind: OwnerKind) -> &'static str {
    match kind {
        OwnerKind::Unspecified => "unknown",
        OwnerKind::Job => "job",
        OwnerKind::Filler => "filler",
    }
}

/// A span with two units at most: `250ms`, `12s`, `5m12s`, `3h05m`, `2d07h`.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms}ms"),
        1..=9 => format!("{}.{}s", s, ms % 1_000 / 100),
        10..=59 => format!("{s}s"),
        60..=3_599 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..=86_399 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// GPU time with its unit: `950 GPU-s`, `12.4 GPU-h`.
pub(crate) fn gpu_time(gpu_ms: u64) -> String {
    match gpu_ms {
        0..10_000 => format!("{}.{} GPU-s", gpu_ms / 1_000, gpu_ms % 1_000 / 100),
        10_000..3_600_000 => format!("{} GPU-s", gpu_ms / 1_000),
        _ => format!("{}.{} GPU-h", gpu_ms / 3_600_000, gpu_ms % 3_600_000 / 360_000),
    }
}

/// Dollars, to the cent and finer only where it is finer: `1.25`, `0.0004`.
pub(crate) fn dollars(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let whole = text.len() - 4;
    format!("{}{}", &text[..whole], text[whole..].trim_end_matches('0'))
}

/// Memory in the largest unit that divides it: `64GiB`.
pub(crate) fn memory(mib: u64) -> String {
    match mib {
        0 => "0".to_owned(),
        _ if mib.is_multiple_of(1 << 20) => format!("{}TiB", mib >> 20),
        _ if mib.is_multiple_of(1 << 10) => format!("{}GiB", mib >> 10),
        _ => format!("{mib}MiB"),
    }
}

/// `1 GPU`, `3 GPUs`.
pub(crate) fn count(n: u64, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// Ordinals with runs as ranges: `0-3,6`.
pub(crate) fn ordinals(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, high)) if *high + 1 == number => *high = number,
            _ => runs.push((number, number)),
        }
    }
    let text = |(low, high): (u32, u32)| {
        if low == high { low.to_string() } else { format!("{low}-{high}") }
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// Names as a host list, each once, in their order.
pub(crate) fn host_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut unique: Vec<String> = Vec::new();
    for name in names {
        if unique.last().is_none_or(|last| last != name) {
            unique.push(name.to_owned());
        }
    }
    rowen_topology::hostlist::compress(&unique)
}

/// A command as a shell would take it back, shortened to fit a line.
pub(crate) fn command(words: &[String]) -> String {
    let plain = |word: &str| {
        !word.is_empty()
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c))
    };
    let quoted: Vec<String> = words
        .iter()
        .map(|w| if plain(w) { w.clone() } else { format!("'{}'", w.replace('\'', r"'\''")) })
        .collect();
    shortened(&quoted.join(" "), 100)
}

/// One line of at most `most` characters.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(most) {
        None => text,
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// A time as RFC 3339 in UTC, to the second.
pub(crate) fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day since 1970, counted in eras of 400 years that begin in March.
fn civil(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, of_year - (153 * march + 2) / 5 + 1)
}

/// The clock of this machine, for ages.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A wire's 0 for "not yet" as an absent value.
pub(crate) fn some(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

/// A wire's empty text as an absent value.
pub(crate) fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let table = [
            (0, "0ms"),
            (999, "999ms"),
            (1_250, "1.2s"),
            (12_999, "12s"),
            (60_000, "1m00s"),
            (312_000, "5m12s"),
            (11_100_000, "3h05m"),
            (198_000_000, "2d07h"),
        ];
        for (ms, text) in table {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn amounts() {
        assert_eq!(dollars(1_250_000), "1.25");
        assert_eq!(dollars(2_000_000), "2.00");
        assert_eq!(dollars(400), "0.0004");
        assert_eq!(dollars(0), "0.00");
        assert_eq!(memory(65_536), "64GiB");
        assert_eq!(memory(1_000), "1000MiB");
        assert_eq!(memory(2 << 20), "2TiB");
        assert_eq!(gpu_time(1_240), "1.2 GPU-s");
        assert_eq!(gpu_time(3_599_999), "3599 GPU-s");
        assert_eq!(gpu_time(45_000_000), "12.5 GPU-h");
        assert_eq!(count(1, "GPU"), "1 GPU");
        assert_eq!(count(0, "node"), "0 nodes");
    }

    #[test]
    fn lists() {
        assert_eq!(ordinals(&[0, 1, 2, 3, 6]), "0-3,6");
        assert_eq!(ordinals(&[]), "");
        assert_eq!(host_list(["n1", "n1", "n2", "n4"]), "n[1-2,4]");
        assert_eq!(
            command(&["sh".into(), "-c".into(), "echo 'a'".into()]),
            r"sh -c 'echo '\''a'\'''"
        );
        assert_eq!(shortened("a  b\nc", 10), "a b c");
        assert_eq!(shortened("abcdef", 4), "abc…");
    }

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399_999), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_767_225_599_000), "2025-12-31T23:59:59Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01T00:00:00Z");
    }
}
