//! Small rules about names: which are usable, how people sort them, what a rack's hosts share.

use std::cmp::Ordering;

use crate::check::check_name;

/// Whether an inventory may use it.
pub(super) fn usable(name: &str) -> bool {
    check_name("", name).is_ok()
}

/// As people count: `n2` before `n10`.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    let (mut a_rest, mut b_rest) = (a, b);
    while !a_rest.is_empty() && !b_rest.is_empty() {
        let (a_run, b_run) = (run(&mut a_rest), run(&mut b_rest));
        let order = match (value(a_run), value(b_run)) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => a_run.cmp(b_run),
        };
        if order.is_ne() {
            return order;
        }
    }
    (a_rest.len().cmp(&b_rest.len())).then_with(|| a.cmp(b))
}

/// Takes the run of digits or of other characters at the head.
fn run<'a>(rest: &mut &'a str) -> &'a str {
    let digit = rest.starts_with(|c: char| c.is_ascii_digit());
    let end = rest.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(rest.len());
    let (head, tail) = rest.split_at(end);
    *rest = tail;
    head
}

/// Digits without their leading zeros: as long as that, they compare as numbers do.
fn value(run: &str) -> Option<(usize, &str)> {
    if !run.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = run.trim_start_matches('0');
    Some((digits.len(), digits))
}

/// The number at the end of a name, and what stands before it.
pub(super) fn ending(name: &str) -> Option<(&str, u32)> {
    let start = name
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + name[at..].chars().next().map_or(1, char::len_utf8));
    let number = name[start..].parse().ok()?;
    Some((&name[..start], number))
}

/// What all names begin with, cut back to the last separator: `a05-dgx-01` of `a05-dgx-01-c[01-18]`.
pub(super) fn common_stem<'a>(mut names: impl Iterator<Item = &'a str>) -> &'a str {
    let Some(first) = names.next() else { return "" };
    let shared = names.fold(first.len(), |shared, name| {
        let same = first.bytes().zip(name.bytes()).take_while(|(x, y)| x == y).count();
        shared.min(same)
    });
    // One name, or one that is the head of the others, still ends before its last part.
    let head = first.get(..shared).unwrap_or_default();
    head.rfind(['-', '_', '.']).map_or("", |at| &head[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_as_people_count() {
        let mut names = ["n10", "n2", "n02", "n", "a9", "n2-c10", "n2-c9", "é1", "n1é"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a9", "n", "n1é", "n02", "n2", "n2-c9", "n2-c10", "n10", "é1"]);
    }

    #[test]
    fn stems() {
        let stem = |names: &[&'static str]| common_stem(names.iter().copied());
        assert_eq!(stem(&["a05-dgx-01-c01", "a05-dgx-01-c18"]), "a05-dgx-01");
        assert_eq!(stem(&["a05-dgx-01-c01"]), "a05-dgx-01");
        assert_eq!(stem(&["node1", "node2"]), "");
        assert_eq!(stem(&["é-1", "è-1"]), "");
        assert_eq!(stem(&[]), "");
    }

    #[test]
    fn endings() {
        assert_eq!(ending("mlx5_10"), Some(("mlx5_", 10)));
        assert_eq!(ending("HCA-1"), Some(("HCA-", 1)));
        assert_eq!(ending("7"), Some(("", 7)));
        assert_eq!(ending("é7"), Some(("é", 7)));
        assert_eq!(ending("eth"), None);
        assert_eq!(ending("x99999999999"), None);
    }
}
