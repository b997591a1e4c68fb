//! Values with units, as people write them: durations, memory, money, commands, variables.
//!
//! Each parses to an integer of the smallest unit; nothing here passes through a float.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A duration: `90s`, `1h30m`, or Slurm's `HH:MM:SS` and `D-HH:MM:SS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub(crate) u64);

/// Memory: `64GiB`, or a number of MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mib(pub(crate) u64);

/// Money: `1.25` dollars is 1,250,000 of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MicroDollars(pub(crate) u64);

/// The value of an environment variable; numbers and booleans are taken as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnvValue(pub(crate) String);

/// What to run: a list of words, or one line for `sh -c`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) Vec<String>);

const DURATION_FIX: &str = "write one like 90s, 10m, 2h30m or 02:30:00";
const MEMORY_FIX: &str = "write one like 64GiB or 512MiB";
const MONEY_FIX: &str = "write dollars like 1.25, with at most 6 decimals";

impl Millis {
    /// Parses a duration; the error says what is wrong and what to write.
    pub(crate) fn parse(text: &str) -> Result<Millis, String> {
        let text = text.trim();
        let ms = if text.contains(':') { clock_ms(text) } else { units_ms(text) };
        match ms {
            Some(ms) => Ok(Millis(ms)),
            None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                Err(format!("{text} has no unit; write {text}s, {text}m or {text}h"))
            }
            None => Err(format!("{text:?} is not a duration; {DURATION_FIX}")),
        }
    }
}

/// `2h30m`: descending units, each at most once.
fn units_ms(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 6] = [
        ("w", 604_800_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ];
    let (mut rest, mut total, mut coarsest) = (text, 0u64, 0);
    while !rest.is_empty() || total == 0 && coarsest == 0 {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let value: u64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit() || c == ' ');
        let unit_end = unit_end.map_or(rest.len(), |at| at + digits);
        let at = UNITS.iter().position(|(name, _)| *name == &rest[digits..unit_end])?;
        if at < coarsest {
            return None;
        }
        total = total.checked_add(value.checked_mul(UNITS[at].1)?)?;
        coarsest = at + 1;
        rest = rest[unit_end..].trim_start();
    }
    Some(total)
}

/// Slurm's `HH:MM:SS`, with days before a dash. `MM:SS` is refused: half its readers take it for
/// hours and minutes.
fn clock_ms(text: &str) -> Option<u64> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (number(days)?, clock),
        None => (0, text),
    };
    let parts: Vec<u64> = clock.split(':').map(number).collect::<Option<_>>()?;
    let &[hours, minutes, seconds] = parts.as_slice() else { return None };
    if minutes > 59 || seconds > 59 {
        return None;
    }
    let hours = days.checked_mul(24)?.checked_add(hours)?;
    hours.checked_mul(3_600)?.checked_add(minutes * 60 + seconds)?.checked_mul(1_000)
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

impl Mib {
    /// Parses memory; a plain number is MiB.
    pub(crate) fn parse(text: &str) -> Result<Mib, String> {
        let text = text.trim();
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = (&text[..at], text[at..].trim());
        let fail = || format!("{text:?} is not an amount of memory; {MEMORY_FIX}");
        let value = number(digits).ok_or_else(fail)?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "m" | "mi" | "mib" => 1,
            "g" | "gi" | "gib" => 1 << 10,
            "t" | "ti" | "tib" => 1 << 20,
            // 1 GB is no whole number of MiB, and who writes it mostly means GiB.
            "mb" | "gb" | "tb" => {
                let first = unit.chars().next().unwrap_or_default().to_ascii_uppercase();
                return Err(format!("{unit} counts in thousands; write {digits}{first}iB"));
            }
            _ => return Err(fail()),
        };
        value.checked_mul(factor).map(Mib).ok_or_else(fail)
    }
}

impl MicroDollars {
    /// Parses decimal dollars exactly; a leading `$` may stand.
    pub(crate) fn parse(text: &str) -> Result<MicroDollars, String> {
        let plain = text.trim().trim_start_matches('$');
        let (whole, part) = plain.split_once('.').unwrap_or((plain, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.starts_with('-') {
            return Err(format!("{text} is negative; {MONEY_FIX}"));
        }
        let empty = whole.is_empty() && part.is_empty() || plain.ends_with('.');
        if empty || !digits(whole) || !digits(part) {
            return Err(format!("{text:?} is not an amount; {MONEY_FIX}"));
        }
        let part = part.trim_end_matches('0');
        if part.len() > 6 {
            return Err(format!("{text} is finer than a millionth; {MONEY_FIX}"));
        }
        let micros = format!("{whole}{part:0<6}");
        micros.parse().map(MicroDollars).map_err(|_| format!("{text} is too large; {MONEY_FIX}"))
    }
}

/// One visitor for all: each type says what it makes of a text, a whole number and so on.
struct Scalar<T> {
    expecting: &'static str,
    text: fn(&str) -> Result<T, String>,
    whole: fn(i128) -> Result<T, String>,
    decimal: fn(f64) -> Result<T, String>,
    truth: Option<fn(bool) -> T>,
    list: Option<fn(Vec<String>) -> T>,
}

impl<'de, T> Visitor<'de> for Scalar<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        (self.text)(value).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        (self.whole)(value.into()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        (self.whole)(value.into()).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        (self.decimal)(value).map_err(E::custom)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
        match self.truth {
            Some(truth) => Ok(truth(value)),
            None => Err(E::invalid_type(de::Unexpected::Bool(value), &self)),
        }
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        let Some(list) = self.list else {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        };
        let mut words = Vec::new();
        while let Some(word) = items.next_element()? {
            words.push(word);
        }
        Ok(list(words))
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        deserializer.deserialize_any(Scalar {
            expecting: "a duration like 90s or 2h",
            text: Millis::parse,
            whole: |n| Millis::parse(&n.to_string()),
            decimal: |n| Millis::parse(&n.to_string()),
            truth: None,
            list: None,
        })
    }
}

impl<'de> Deserialize<'de> for Mib {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mib, D::Error> {
        deserializer.deserialize_any(Scalar {
            expecting: "an amount of memory like 64GiB",
            text: Mib::parse,
            whole: |n| Mib::parse(&n.to_string()),
            decimal: |n| Mib::parse(&n.to_string()),
            truth: None,
            list: None,
        })
    }
}

impl<'de> Deserialize<'de> for MicroDollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MicroDollars, D::Error> {
        deserializer.deserialize_any(Scalar {
            expecting: "dollars like 1.25",
            text: MicroDollars::parse,
            whole: |n| MicroDollars::parse(&n.to_string()),
            // The shortest decimal that reads back as this float is what stood in the file.
            decimal: |n| MicroDollars::parse(&n.to_string()),
            truth: None,
            list: None,
        })
    }
}

impl<'de> Deserialize<'de> for EnvValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EnvValue, D::Error> {
        deserializer.deserialize_any(Scalar {
            expecting: "a text in quotes",
            text: |text| Ok(EnvValue(text.to_owned())),
            whole: |n| Ok(EnvValue(n.to_string())),
            decimal: |n| Err(format!("{n} may change its spelling on the way; put it in quotes")),
            truth: Some(|truth| EnvValue(truth.to_string())),
            list: None,
        })
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Command, D::Error> {
        deserializer.deserialize_any(Scalar {
            expecting: "a list of words or one shell line",
            text: |line| {
                let words = if line.trim().is_empty() { vec![] } else { vec!["sh", "-c", line] };
                Ok(Command(words.into_iter().map(str::to_owned).collect()))
            },
            whole: |n| {
                Err(format!("found the number {n}; write a list of words or one shell line"))
            },
            decimal: |n| {
                Err(format!("found the number {n}; write a list of words or one shell line"))
            },
            truth: None,
            list: Some(Command),
        })
    }
}

// Written only as the defaults in the JSON Schema.
impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::check::duration(*self))
    }
}

impl Serialize for MicroDollars {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::output::words::dollars(self.0))
    }
}

/// A schema by hand: what the file may hold is wider than the type it becomes.
macro_rules! schema_of {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

schema_of!(Millis, "Duration", {
    "type": "string",
    "pattern": r"^(\d+(w|d|h|m|s|ms) ?)+$|^(\d+-)?\d+:\d\d:\d\d$",
    "examples": ["90s", "2h30m", "02:30:00"]
});
schema_of!(Mib, "Memory", {
    "type": ["string", "integer"],
    "pattern": r"^\d+ ?([mMgGtT](i|iB)?)?$",
    "minimum": 0,
    "examples": ["64GiB", 65536]
});
schema_of!(MicroDollars, "Dollars", {
    "type": ["string", "number"],
    "pattern": r"^\$?\d+(\.\d{1,6})?$",
    "minimum": 0,
    "examples": ["1.25", 2]
});
schema_of!(EnvValue, "EnvValue", { "type": ["string", "integer", "boolean"] });
schema_of!(Command, "Command", {
    "type": ["array", "string"],
    "items": { "type": "string" },
    "minItems": 1,
    "minLength": 1,
    "examples": [["python3", "train.py"], "python3 train.py"]
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |text: &str| Millis::parse(text).map(|d| d.0);
        assert_eq!(ms("90s"), Ok(90_000));
        assert_eq!(ms("2h"), Ok(7_200_000));
        assert_eq!(ms("2h30m"), Ok(9_000_000));
        assert_eq!(ms("1h 30m"), Ok(5_400_000));
        assert_eq!(ms("250ms"), Ok(250));
        assert_eq!(ms("1w1d"), Ok(8 * 86_400_000));
        assert_eq!(ms("0s"), Ok(0));
        assert_eq!(ms("02:30:00"), Ok(9_000_000));
        assert_eq!(ms("100:00:01"), Ok(360_001_000));
        assert_eq!(ms("1-00:00:30"), Ok(86_430_000));
        for bad in [
            "",
            " ",
            "h",
            "2x",
            "30m2h",
            "2h2h",
            "1.5h",
            "-1s",
            "10:00",
            "1:60:00",
            "1:00:60",
            "a:b:c",
            "1:2:3:4",
            "99999999999999999999s",
            "9999999999999999w",
            "2 h",
            "1h-2m",
        ] {
            assert!(ms(bad).is_err(), "{bad:?} gave {:?}", ms(bad));
        }
        assert_eq!(ms("90").unwrap_err(), "90 has no unit; write 90s, 90m or 90h");
    }

    #[test]
    fn memory() {
        let mib = |text: &str| Mib::parse(text).map(|m| m.0);
        assert_eq!(mib("64GiB"), Ok(65_536));
        assert_eq!(mib("64 GiB"), Ok(65_536));
        assert_eq!(mib("64G"), Ok(65_536));
        assert_eq!(mib("512Mi"), Ok(512));
        assert_eq!(mib("1TiB"), Ok(1 << 20));
        assert_eq!(mib("4096"), Ok(4_096));
        assert_eq!(mib("64GB").unwrap_err(), "GB counts in thousands; write 64GiB");
        for bad in ["", "GiB", "1.5GiB", "-1GiB", "64XiB", "64 Gi B", "99999999999999TiB"] {
            assert!(mib(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn money_is_exact() {
        let micros = |text: &str| MicroDollars::parse(text).map(|m| m.0);
        assert_eq!(micros("1.25"), Ok(1_250_000));
        assert_eq!(micros("$0.1"), Ok(100_000));
        assert_eq!(micros("0.000001"), Ok(1));
        assert_eq!(micros("0.1000000000"), Ok(100_000));
        assert_eq!(micros(".5"), Ok(500_000));
        assert_eq!(micros("12"), Ok(12_000_000));
        for bad in ["", "$", ".", "1.", "-1", "1e3", "1,5", "0.0000001", "99999999999999999999"] {
            assert!(micros(bad).is_err(), "{bad:?}");
        }
        for cents in 0..100_000u64 {
            let float: f64 = format!("{}.{:02}", cents / 100, cents % 100).parse().unwrap();
            assert_eq!(micros(&float.to_string()), Ok(cents * 10_000));
        }
    }
}
