//! Slurm's compressed host lists, as SLURM_JOB_NODELIST holds them.
//!
//! Owns writing them, for the few forms needed here; reading them belongs to
//! `topology`, which the agent does not depend on.

use std::fmt::Write;

/// `n1,n2,n3,x` becomes `n[1-3],x`. Order and repetitions are kept: readers
/// count the entries and take the first as rank 0's.
pub(crate) fn compress(hosts: &[String]) -> String {
    let mut out = String::new();
    let mut rest = hosts;
    while let Some(first) = rest.first() {
        let run = group(rest);
        if !out.is_empty() {
            out.push(',');
        }
        match numbered(first) {
            Some((prefix, _)) if run > 1 => write_group(&mut out, prefix, &rest[..run]),
            _ => out.push_str(first),
        }
        rest = &rest[run..];
    }
    out
}

/// How many leading hosts go into one bracket.
fn group(hosts: &[String]) -> usize {
    let Some((prefix, digits)) = numbered(&hosts[0]) else { return 1 };
    let fits = |host: &&String| {
        numbered(host)
            .is_some_and(|(other, number)| other == prefix && number.len() == digits.len())
    };
    hosts.iter().take_while(fits).count()
}

/// `node012` is (`node`, `012`). Digits past 18 would not fit a number.
fn numbered(host: &str) -> Option<(&str, &str)> {
    let prefix = host.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &host[prefix.len()..];
    (!digits.is_empty() && digits.len() <= 18).then_some((prefix, digits))
}

fn write_group(out: &mut String, prefix: &str, hosts: &[String]) {
    let width = hosts[0].len() - prefix.len();
    let numbers: Vec<u64> =
        hosts.iter().map(|host| host[prefix.len()..].parse().expect("only digits")).collect();
    let mut ranges: Vec<String> = Vec::new();
    let mut at = 0;
    while at < numbers.len() {
        let start = numbers[at];
        let length =
            (0..).zip(&numbers[at..]).take_while(|(step, number)| **number == start + step).count();
        let end = numbers[at + length - 1];
        let range = if length == 1 {
            format!("{start:0width$}")
        } else {
            format!("{start:0width$}-{end:0width$}")
        };
        ranges.push(range);
        at += length;
    }
    let _ = write!(out, "{prefix}[{}]", ranges.join(","));
}

#[cfg(test)]
mod tests {
    use super::compress;

    fn check(hosts: &str, expect: &str) {
        let hosts: Vec<String> = hosts.split_whitespace().map(str::to_string).collect();
        assert_eq!(compress(&hosts), expect);
    }

    #[test]
    fn lists() {
        check("", "");
        check("node1", "node1");
        check("node1 node2 node3 x", "node[1-3],x");
        check("node08 node09 node10", "node[08-10]");
        check("node9 node10 node11", "node9,node[10-11]");
        check("n1 n2 n5 n7 n8", "n[1-2,5,7-8]");
        check("10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.[1-3]");
        check("n3 n1 n2", "n[3,1-2]");
        check("127.0.0.1 127.0.0.1", "127.0.0.[1,1]");
        check("a1 b1 b2 a2", "a1,b[1-2],a2");
    }
}
