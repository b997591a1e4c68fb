//! The limits that a file's values are held to, each with the field and what to write instead.
//!
//! The server checks the same limits again (`rowen_state::JobSpec::validate`); they stand here too
//! so that `validate` works offline, names every problem at once and speaks in the file's units.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rowen_topology::Level;

use super::Problem;
use super::values::{EnvValue, Millis};

/// What a name looks like: lower case, so that it is one in DNS and Kubernetes too.
pub(super) const NAME_PATTERN: &str = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$";
/// A cluster has no more GPUs than this.
pub(super) const MAX_INSTANCES: u32 = 131_072;
/// GPUs of one node.
pub(super) const MAX_GPUS: u32 = 64;

const MAX_NAME: usize = 63;
const MAX_TEXT: usize = 256;
const MAX_VARIABLES: usize = 1_024;
const MAX_COMMAND_BYTES: usize = 128 << 10;
const HOUR_MS: u64 = 3_600_000;
const MAX_LONG_MS: u64 = 366 * 24 * HOUR_MS;

/// Collects what is wrong, so that a user sees all of it at once.
#[derive(Default)]
pub(super) struct Checks {
    problems: Vec<Problem>,
}

impl Checks {
    /// `value` if nothing was wrong.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() { Ok(value) } else { Err(self.problems) }
    }

    /// Records a problem of `field`.
    pub(super) fn fail(&mut self, field: &str, text: impl Into<String>) {
        self.problems.push(Problem::new(field, text));
    }

    pub(super) fn name(&mut self, field: &str, name: &str) {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let inner = |c: char| edge(c) || matches!(c, '.' | '_' | '-');
        if name.is_empty() {
            self.fail(field, "empty; write a name");
        } else if name.len() > MAX_NAME {
            self.fail(field, format!("{} characters; shorten it to {MAX_NAME}", name.len()));
        } else if let Some(bad) = name.chars().find(|&c| !inner(c)) {
            let text = format!("{name:?} has a {bad:?}; use only a-z, 0-9, '.', '_' and '-'");
            self.fail(field, text);
        } else if !name.starts_with(edge) || !name.ends_with(edge) {
            self.fail(field, format!("{name:?} must begin and end with a letter or a digit"));
        }
    }

    /// A label that may hold anything printable.
    pub(super) fn text(&mut self, field: &str, text: &str) {
        if text.len() > MAX_TEXT {
            self.fail(field, format!("{} bytes; shorten it to {MAX_TEXT}", text.len()));
        } else if let Some(bad) = text.chars().find(|c| c.is_control()) {
            self.fail(field, format!("holds the control character {bad:?}; remove it"));
        }
    }

    pub(super) fn count(&mut self, field: &str, value: u32, range: RangeInclusive<u32>) {
        if !range.contains(&value) {
            let (low, high) = range.into_inner();
            self.fail(field, format!("{value} is out of range; write {low} to {high}"));
        }
    }

    /// At most an hour: who evicts must wait for it.
    pub(super) fn notice(&mut self, field: &str, notice: Millis) {
        if notice.0 > HOUR_MS {
            self.fail(field, format!("{} is too long; write at most 1h", duration(notice)));
        }
    }

    /// From `least` to a year.
    pub(super) fn long(&mut self, field: &str, value: Millis, least: Millis) {
        if value < least {
            self.fail(
                field,
                format!("{} is too short; write at least {}", duration(value), duration(least)),
            );
        }
        if value.0 > MAX_LONG_MS {
            self.fail(field, format!("{} is too long; write at most 366d", duration(value)));
        }
    }

    pub(super) fn warm_up(&mut self, field: &str, value: Millis) {
        if value.0 > 24 * HOUR_MS {
            self.fail(field, format!("{} is too long; write at most 24h", duration(value)));
        }
    }

    pub(super) fn levels(&mut self, required: Option<Level>, preferred: Option<Level>) {
        if let (Some(required), Some(preferred)) = (required, preferred)
            && preferred < required
        {
            let text = format!(
                "{preferred} is coarser than required {required}; write {required} or a finer level"
            );
            self.fail("topology.preferred", text);
        }
    }

    pub(super) fn process(&mut self, command: &[String], env: &BTreeMap<String, EnvValue>) {
        if command.first().is_none_or(|program| program.trim().is_empty()) {
            self.fail("command", "empty; name the program to run");
        }
        if command.iter().any(|word| word.contains('\0')) {
            self.fail("command", "holds a NUL byte; remove it");
        }
        if env.len() > MAX_VARIABLES {
            let text = format!("{} variables; keep at most {MAX_VARIABLES}", env.len());
            self.fail("env", text);
        }
        for (key, value) in env {
            self.variable(key, &value.0);
        }
        let bytes = command.iter().map(String::len).sum::<usize>()
            + env.iter().map(|(key, value)| key.len() + value.0.len()).sum::<usize>();
        if bytes > MAX_COMMAND_BYTES {
            let text = format!(
                "{bytes} bytes with env; put long scripts in a file and stay below {MAX_COMMAND_BYTES}"
            );
            self.fail("command", text);
        }
    }

    fn variable(&mut self, key: &str, value: &str) {
        let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        if !key.starts_with(letter) || !key.chars().all(|c| letter(c) || c.is_ascii_digit()) {
            let text = format!("{key:?} is no variable name; use letters, digits and '_'");
            self.fail("env", text);
        } else if value.contains('\0') {
            self.fail(&format!("env.{key}"), "holds a NUL byte; remove it");
        }
    }
}

/// As a file would have it: `2h30m`, `90s`, `1500ms`.
pub(crate) fn duration(ms: Millis) -> String {
    if ms.0 == 0 {
        return "0s".to_owned();
    }
    let mut rest = ms.0;
    let mut text = String::new();
    for (unit, size) in
        [("d", 24 * HOUR_MS), ("h", HOUR_MS), ("m", 60_000), ("s", 1_000), ("ms", 1)]
    {
        if rest >= size {
            text += &format!("{}{unit}", rest / size);
            rest %= size;
        }
    }
    text
}
