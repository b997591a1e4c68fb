//! The replicated part stays a pure function, and the graph library stays where
//! the graph is.

use crate::repo::{Crate, Repo};

/// Crates whose result every replica must agree on.
const PURE: [&str; 3] = ["rowen-placement", "rowen-state", "rowen-topology"];
/// What brings a clock, a thread or chance with it.
const IMPURE: [&str; 6] = ["tokio", "rand", "getrandom", "chrono", "rayon", "nix"];
/// Only this crate names petgraph: the hot path sees the flat index alone.
const GRAPH: &str = "rowen-topology";

/// No pure crate links what is impure, no other crate names petgraph.
pub(crate) fn check(repo: &Repo) -> Vec<String> {
    repo.crates.iter().flat_map(mistakes).collect()
}

fn mistakes(member: &Crate) -> Vec<String> {
    let mut mistakes = Vec::new();
    if PURE.contains(&member.name.as_str()) {
        let linked = IMPURE.iter().filter(|name| member.links.contains(**name));
        mistakes.extend(linked.map(|name| {
            format!("{} links {name}; it must stay a pure function of its arguments", member.name)
        }));
    }
    if member.name != GRAPH && member.names.contains("petgraph") {
        mistakes.push(format!("{} names petgraph; use the flat index of {GRAPH}", member.name));
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::{repo, with_crate};

    #[test]
    fn pure_crates_link_nothing_impure() {
        let good = with_crate(repo(&[]), "rowen-state", &["serde"], &["serde"]);
        let good = with_crate(good, "rowen-server", &["tokio"], &["tokio", "petgraph"]);
        let good = with_crate(good, "rowen-topology", &["petgraph"], &["petgraph"]);
        assert_eq!(check(&good), Vec::<String>::new());
        let bad = with_crate(repo(&[]), "rowen-state", &["serde"], &["serde", "tokio"]);
        assert_eq!(check(&bad).len(), 1, "a pure crate that links tokio through another");
        let bad = with_crate(repo(&[]), "rowen-placement", &["petgraph"], &["petgraph"]);
        assert_eq!(check(&bad).len(), 1, "petgraph outside of topology");
    }
}
