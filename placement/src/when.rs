//! Times in sentences: when a gang starts at the latest, and whether saying it anew is worth a
//! line in the log. Never reads a clock.

use rowen_state::JobId;

use crate::reason;

/// Stands between why a gang waits and when it starts.
const STARTS: &str = "; starts by ";
/// Shape of a time.
const TIME_BYTES: usize = "2026-11-22 14:05:00 UTC".len();
/// A planned start is said anew only when it moved by more than this, or by more than a tenth of
/// what is left until then.
const MOVED_MS: u64 = 60_000;
const DAY_S: u64 = 86_400;

/// When a gang starts at the latest, as far as time limits say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedStart {
    /// Unix time.
    pub by_ms: u64,
    /// The job whose time limit it waits for; none: it waits for cores or memory.
    pub after: Option<JobId>,
}

/// `why; starts by 2026-11-22 14:05:00 UTC at the latest, when job 17 reaches its time limit`.
pub(crate) fn with_start(why: String, planned: Option<PlannedStart>) -> String {
    let Some(PlannedStart { by_ms, after }) = planned else { return reason::bounded(why) };
    let when = match after {
        Some(job) => format!(", when job {job} reaches its time limit"),
        None => String::new(),
    };
    let tail = format!("{STARTS}{} at the latest{when}", time(by_ms));
    let mut why = reason::bounded(why);
    let room = reason::REASON_BYTES - tail.len();
    if why.len() > room {
        why.truncate(why.floor_char_boundary(room));
    }
    why + &tail
}

/// Whether a reason says no more than the one before it did: the same but for a planned start that
/// hardly moved.
pub(crate) fn says_nothing_new(old: &str, new: &str, now_ms: u64) -> bool {
    if old == new {
        return true;
    }
    let (Some((old_why, old_ms)), Some((new_why, new_ms))) = (split(old), split(new)) else {
        return false;
    };
    let passed = old_ms < now_ms && old_ms < new_ms;
    let bound_ms = MOVED_MS.max(new_ms.saturating_sub(now_ms) / 10);
    old_why == new_why && !passed && old_ms.abs_diff(new_ms) <= bound_ms
}

/// Why, and the planned start that is said with it.
fn split(reason: &str) -> Option<(&str, u64)> {
    let (why, when) = reason.rsplit_once(STARTS)?;
    Some((why, parse(when.get(..TIME_BYTES)?)?))
}

/// `2026-11-22 14:05:00 UTC`, rounded up.
pub(crate) fn time(unix_ms: u64) -> String {
    let unix_s = unix_ms.div_ceil(1_000);
    let (year, month, day) = date(unix_s / DAY_S);
    let (hour, minute, second) = (unix_s / 3_600 % 24, unix_s / 60 % 60, unix_s % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn parse(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let days = days(number(0, 4)?, number(5, 7)?, number(8, 10)?)?;
    let seconds = number(11, 13)? * 3_600 + number(14, 16)? * 60 + number(17, 19)?;
    text.ends_with(" UTC").then_some((days * DAY_S + seconds) * 1_000)
}

/// The day's date in the Gregorian calendar. Counted from 1 March of year 0, where a leap day is
/// the last of its year; 719,468 days lie between that and 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153; // from March
    let day = of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year + u64::from(month >= 10);
    (year, if month < 10 { month + 3 } else { month - 9 }, day)
}

/// The way back.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let from_march = (month + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + day.checked_sub(1)?;
    let of_era = year % 400 * 365 + year % 400 / 4 - year % 400 / 100 + of_year;
    (year / 400 * 146_097 + of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_they_were_written() {
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(time(1_795_356_299_001), "2026-11-22 14:05:00 UTC");
        for day in (0..80_000).step_by(7) {
            let ms = (day * DAY_S + day * 37 % DAY_S) * 1_000;
            assert_eq!(parse(&time(ms)), Some(ms));
        }
        assert_eq!(parse("2026-11-22 14:05:00 CET"), None);
    }

    #[test]
    fn only_a_start_that_moved_is_said_anew() {
        let said = |by_ms, after| {
            let after = Some(JobId(after));
            with_start("needs 8 GPUs".into(), Some(PlannedStart { by_ms, after }))
        };
        let old = said(1_000_000, 7);
        assert!(says_nothing_new(&old, &said(1_060_000, 8), 0), "within a minute");
        assert!(!says_nothing_new(&old, &said(1_200_000, 7), 0), "three minutes later");
        assert!(says_nothing_new(&said(9_000_000, 7), &said(9_600_000, 7), 0), "a tenth");
        assert!(!says_nothing_new(&old, &said(1_001_000, 7), 1_000_500), "its time has passed");
        assert!(!says_nothing_new(&old, "needs 8 GPUs", 0));
        assert!(!says_nothing_new("needs 8 GPUs", &old, 0));
    }

    #[test]
    fn a_planned_start_is_said_however_long_the_rest_is() {
        let planned = PlannedStart { by_ms: 5_000, after: Some(JobId(7)) };
        let text = with_start("ö".repeat(400), Some(planned));
        assert!(text.len() <= reason::REASON_BYTES && text.ends_with("its time limit"), "{text}");
    }
}
