//! Slurm's host list syntax: `node[1101-1118,1200]`, several brackets in a name, several names
//! with commas between, leading zeros kept. Knows nothing of what the names name.

use std::fmt::Write as _;

/// No list may stand for more names than this.
pub const MAX_NAMES: usize = 65_536;

/// More digits than this are no number of ours (and a u64 holds them all).
const MAX_DIGITS: usize = 18;

/// What is wrong with a host list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostlistError {
    /// Nothing between two commas, or nothing at all.
    #[error("an empty name in {list:?}")]
    EmptyName {
        /// The whole list.
        list: String,
    },
    /// A bracket without its partner.
    #[error("a bracket without its partner in {list:?}")]
    Unbalanced {
        /// The whole list.
        list: String,
    },
    /// Something between brackets that is neither `7` nor `1-8`.
    #[error("{range:?} is not a number or a range")]
    BadRange {
        /// What stands between two commas.
        range: String,
    },
    /// A range whose end lies before its start.
    #[error("the range {range:?} runs backwards")]
    Backwards {
        /// The range.
        range: String,
    },
    /// The list stands for more than [`MAX_NAMES`] names.
    #[error("the list stands for more than {MAX_NAMES} names")]
    TooMany,
}

/// All names that `list` stands for, in its order; the last bracket of a name runs fastest.
pub fn expand(list: &str) -> Result<Vec<String>, HostlistError> {
    let mut names = Vec::new();
    for item in split_outside_brackets(list)? {
        let item = item.trim();
        if item.is_empty() {
            return Err(HostlistError::EmptyName { list: list.to_owned() });
        }
        let grown = expand_item(item, MAX_NAMES - names.len())?;
        names.extend(grown);
    }
    Ok(names)
}

/// The short form of `names`: runs of consecutive numbers become ranges. `expand` gives back the
/// same names in the same order, so nothing is sorted and duplicates stay.
pub fn compress(names: &[String]) -> String {
    let mut out = String::new();
    let mut rest = names;
    while !rest.is_empty() {
        if !out.is_empty() {
            out.push(',');
        }
        rest = &rest[write_group(&mut out, rest)..];
    }
    out
}

/// Splits at the commas that stand outside brackets.
fn split_outside_brackets(list: &str) -> Result<Vec<&str>, HostlistError> {
    let unbalanced = || HostlistError::Unbalanced { list: list.to_owned() };
    let mut items = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'[' if inside => return Err(unbalanced()),
            b'[' => inside = true,
            b']' if !inside => return Err(unbalanced()),
            b']' => inside = false,
            b',' if !inside => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(unbalanced());
    }
    items.push(&list[start..]);
    Ok(items)
}

/// One item, its brackets balanced: each bracket multiplies the names so far.
fn expand_item(item: &str, room: usize) -> Result<Vec<String>, HostlistError> {
    let mut names = vec![String::new()];
    let mut rest = item;
    while let Some((literal, after)) = rest.split_once('[') {
        let (ranges, tail) = after.split_once(']').expect("the brackets were balanced above");
        let numbers = expand_ranges(ranges, room)?;
        if names.len().saturating_mul(numbers.len()) > room {
            return Err(HostlistError::TooMany);
        }
        names = names
            .iter()
            .flat_map(|name| numbers.iter().map(move |number| format!("{name}{literal}{number}")))
            .collect();
        rest = tail;
    }
    if names.len() > room {
        return Err(HostlistError::TooMany);
    }
    for name in &mut names {
        name.push_str(rest);
    }
    Ok(names)
}

/// What stands between two brackets: `1101-1118,1200`.
fn expand_ranges(ranges: &str, room: usize) -> Result<Vec<String>, HostlistError> {
    let mut numbers = Vec::new();
    for range in ranges.split(',').map(str::trim) {
        let (low_text, high_text) = range.split_once('-').unwrap_or((range, range));
        let bad = || HostlistError::BadRange { range: range.to_owned() };
        let (low, high) = (number(low_text).ok_or_else(bad)?, number(high_text).ok_or_else(bad)?);
        // `1-010` could mean two things; Slurm's padding follows the lower end.
        if high_text.starts_with('0') && high_text.len() != low_text.len() {
            return Err(bad());
        }
        if high < low {
            return Err(HostlistError::Backwards { range: range.to_owned() });
        }
        if high - low >= (room - numbers.len().min(room)) as u64 {
            return Err(HostlistError::TooMany);
        }
        let width = low_text.len();
        numbers.extend((low..=high).map(|n| format!("{n:0width$}")));
    }
    Ok(numbers)
}

fn number(text: &str) -> Option<u64> {
    let plausible = (1..=MAX_DIGITS).contains(&text.len());
    (plausible && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Writes the longest group at the head of `names` that shares one bracket; returns its length.
fn write_group(out: &mut String, names: &[String]) -> usize {
    let Some(head) = Numbered::split(&names[0]) else {
        out.push_str(&names[0]);
        return 1;
    };
    let group: Vec<Numbered<'_>> = names
        .iter()
        .map_while(|name| Numbered::split(name).filter(|n| n.is_alike(&head)))
        .collect();
    if group.len() == 1 {
        out.push_str(&names[0]);
        return 1;
    }
    let _ = write!(out, "{}[", head.prefix);
    let mut at = 0;
    while at < group.len() {
        let low = &group[at];
        let run = group[at..].iter().enumerate().take_while(|(i, n)| low.is_followed_by(n, *i));
        let run = run.count();
        let comma = if at == 0 { "" } else { "," };
        match run {
            1 => _ = write!(out, "{comma}{}", low.digits),
            _ => _ = write!(out, "{comma}{}-{}", low.digits, group[at + run - 1].digits),
        }
        at += run;
    }
    let _ = write!(out, "]{}", head.suffix);
    group.len()
}

/// A name cut around its last run of digits.
struct Numbered<'a> {
    prefix: &'a str,
    digits: &'a str,
    value: u64,
    suffix: &'a str,
}

impl<'a> Numbered<'a> {
    fn split(name: &'a str) -> Option<Numbered<'a>> {
        let end = name.rfind(|c: char| c.is_ascii_digit())? + 1;
        let start = name[..end]
            .rfind(|c: char| !c.is_ascii_digit())
            .map_or(0, |at| at + name[at..].chars().next().map_or(1, char::len_utf8));
        let digits = &name[start..end];
        let value = number(digits)?;
        Some(Numbered { prefix: &name[..start], digits, value, suffix: &name[end..] })
    }

    fn is_alike(&self, other: &Numbered<'_>) -> bool {
        self.prefix == other.prefix && self.suffix == other.suffix
    }

    /// Whether `other` is what expanding a range from `self` gives `steps` later.
    fn is_followed_by(&self, other: &Numbered<'_>, steps: usize) -> bool {
        let width = self.digits.len();
        other.value == self.value + steps as u64
            && other.digits == format!("{:0width$}", other.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(list: &str, names: &str) {
        let expanded = expand(list).unwrap();
        assert_eq!(expanded.join(" "), names);
        assert_eq!(expand(&compress(&expanded)).unwrap(), expanded);
    }

    #[test]
    fn slurm_syntax() {
        check("node1", "node1");
        check("node[1-3,7]", "node1 node2 node3 node7");
        check("node[008-011]", "node008 node009 node010 node011");
        check("node[8-11]", "node8 node9 node10 node11");
        check("a, b[1-2]", "a b1 b2");
        check("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2");
        check("gpu[1-2]-ib", "gpu1-ib gpu2-ib");
        check("[1-2]", "1 2");
    }

    #[test]
    fn short_forms() {
        let short = |list: &str| compress(&expand(list).unwrap());
        assert_eq!(short("node1101,node1102,node1103,node1200"), "node[1101-1103,1200]");
        assert_eq!(short("n099,n100,n101"), "n[099-101]");
        assert_eq!(short("n99,n100,n0101"), "n[99-100,0101]");
        assert_eq!(short("a,b,a"), "a,b,a");
        assert_eq!(short("n2,n1,n1"), "n[2,1,1]");
        assert_eq!(compress(&[]), "");
    }

    #[test]
    fn refused() {
        let problem = |list: &str| expand(list).unwrap_err().to_string();
        assert_eq!(problem(""), "an empty name in \"\"");
        assert_eq!(problem("a,,b"), "an empty name in \"a,,b\"");
        assert_eq!(problem("n[1-2"), "a bracket without its partner in \"n[1-2\"");
        assert_eq!(problem("n1-2]"), "a bracket without its partner in \"n1-2]\"");
        assert_eq!(problem("n[[1]]"), "a bracket without its partner in \"n[[1]]\"");
        assert_eq!(problem("n[]"), "\"\" is not a number or a range");
        assert_eq!(problem("n[a-b]"), "\"a-b\" is not a number or a range");
        assert_eq!(problem("n[1-]"), "\"1-\" is not a number or a range");
        assert_eq!(problem("n[1-010]"), "\"1-010\" is not a number or a range");
        assert_eq!(problem("n[8-1]"), "the range \"8-1\" runs backwards");
        let many = "the list stands for more than 65536 names";
        assert_eq!(problem("n[1-65537]"), many);
        assert_eq!(problem("n[1-999999999999999999]"), many);
        assert_eq!(problem("n[1-300][1-300]"), many);
        assert_eq!(problem("n[1-65536],m"), many);
        assert_eq!(expand("n[1-65536]").unwrap().len(), MAX_NAMES);
    }

    proptest! {
        #[test]
        fn compress_then_expand(names in prop::collection::vec("[a-c]{0,2}[0-9]{0,3}[-.x]?[0-9é]{1,3}", 1..40)) {
            prop_assert_eq!(expand(&compress(&names)).unwrap(), names);
        }

        #[test]
        fn any_text_is_answered(list in "[a0-9,\\[\\] é-]{0,24}") {
            if let Ok(names) = expand(&list) {
                prop_assert!(!names.is_empty() && names.len() <= MAX_NAMES);
            }
        }
    }
}
