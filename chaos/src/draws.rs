//! The numbers of what a seed draws: each fault and each operation has one, and
//! chance of its own that follows from seed and number alone. So a run can be
//! repeated without some of them, and the others stay as they were.
//!
//! Owns numbering and dropping. Never decides what is drawn.

use std::collections::BTreeSet;

use crate::rng::Rng;

/// Whether a draw is a fault or a client's operation; they are numbered apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Drawn {
    Fault,
    Operation,
}

/// One draw: `f3` or `o17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Draw {
    pub(crate) kind: Drawn,
    pub(crate) number: u32,
}

impl std::fmt::Display for Draw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = match self.kind {
            Drawn::Fault => 'f',
            Drawn::Operation => 'o',
        };
        write!(f, "{letter}{}", self.number)
    }
}

/// Counts draws and leaves out those that are to be dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draws {
    seed: u64,
    faults: u32,
    operations: u32,
    dropped: BTreeSet<Draw>,
}

impl Draws {
    pub(crate) fn new(seed: u64, dropped: BTreeSet<Draw>) -> Draws {
        Draws { seed, faults: 0, operations: 0, dropped }
    }

    /// The next draw of a kind and the chance it is drawn from. With `false` its times are to be
    /// drawn as ever, and nothing else is to happen.
    pub(crate) fn next(&mut self, kind: Drawn) -> (Draw, Rng, bool) {
        let counter = match kind {
            Drawn::Fault => &mut self.faults,
            Drawn::Operation => &mut self.operations,
        };
        *counter += 1;
        let draw = Draw { kind, number: *counter };
        let salt = (u64::from(draw.number) << 1) | u64::from(kind == Drawn::Fault);
        let mut mixed = Rng::new(self.seed);
        let rng = Rng::new(mixed.next() ^ salt.wrapping_mul(0xd6e8_feb8_6659_fd93));
        (draw, rng, !self.dropped.contains(&draw))
    }

    /// Every draw so far that happened.
    pub(crate) fn happened(&self) -> Vec<Draw> {
        let of = |kind, count: u32| (1..=count).map(move |number| Draw { kind, number });
        let all = of(Drawn::Fault, self.faults).chain(of(Drawn::Operation, self.operations));
        all.filter(|draw| !self.dropped.contains(draw)).collect()
    }
}

/// `f3,f7,o9-20`, as `--drop` takes it.
pub(crate) fn parse(text: &str) -> Result<BTreeSet<Draw>, String> {
    let mut draws = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let mistake = || format!("drop: {part:?} is no draw; write f3 (a fault) or o9-20");
        let kind = match part.as_bytes()[0] {
            b'f' => Drawn::Fault,
            b'o' => Drawn::Operation,
            _ => return Err(mistake()),
        };
        let (first, last) = part[1..].split_once('-').unwrap_or((&part[1..], &part[1..]));
        let first: u32 = first.parse().map_err(|_| mistake())?;
        let last: u32 = last.parse().map_err(|_| mistake())?;
        if first == 0 || first > last || last > 1_000_000 {
            return Err(mistake());
        }
        draws.extend((first..=last).map(|number| Draw { kind, number }));
    }
    Ok(draws)
}

/// As [`parse`] reads it, with ranges.
pub(crate) fn format(draws: &BTreeSet<Draw>) -> String {
    let mut parts: Vec<(Draw, u32)> = Vec::new();
    for draw in draws {
        match parts.last_mut() {
            Some((first, last)) if first.kind == draw.kind && *last + 1 == draw.number => {
                *last = draw.number;
            }
            _ => parts.push((*draw, draw.number)),
        }
    }
    let parts = parts.into_iter().map(|(first, last)| match first.number == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_written_as_it_is_read() {
        let drawn = parse("f7, f3,o9-12,o10").unwrap();
        assert_eq!(drawn.len(), 6);
        assert_eq!(format(&drawn), "f3,f7,o9-12");
        assert_eq!(parse(&format(&drawn)), Ok(drawn));
        for bad in ["7", "f", "f0", "o9-3", "x1", "o1-99999999"] {
            assert!(parse(bad).unwrap_err().starts_with("drop: "), "{bad}");
        }
    }

    #[test]
    fn dropping_one_leaves_the_others_as_they_were() {
        let draw = |dropped: &str| -> Vec<(u64, bool)> {
            let mut draws = Draws::new(7, parse(dropped).unwrap());
            let kinds = [Drawn::Fault, Drawn::Operation, Drawn::Fault];
            let numbers =
                kinds.map(|kind| draws.next(kind)).map(|(_, mut rng, on)| (rng.next(), on));
            assert_eq!(draws.happened().len(), numbers.iter().filter(|(_, on)| *on).count());
            numbers.to_vec()
        };
        let (all, some) = (draw(""), draw("f1"));
        assert_eq!(
            all.iter().map(|(n, _)| n).collect::<Vec<_>>(),
            some.iter().map(|(n, _)| n).collect::<Vec<_>>()
        );
        assert_eq!(some.iter().map(|(_, on)| *on).collect::<Vec<_>>(), [false, true, true]);
        assert!(all[0].0 != all[1].0 && all[0].0 != all[2].0);
    }
}
