//! `cargo xtask check`: every check over the repository as it lies on the disk.

use std::process::ExitCode;

use crate::{
    checks::{blobs, glossary, heads, imports, lengths, lints, purity},
    repo::Repo,
};

type Check = fn(&Repo) -> Vec<String>;

/// By name. Each gives one line a mistake, with the place and what to do.
const CHECKS: [(&str, Check); 7] = [
    ("imports as in ARCHITECTURE.md", imports::check),
    ("pure crates stay pure", purity::check),
    ("each crate inherits the lints", lints::check),
    ("each .rs file says what it owns", heads::check),
    ("no file of two ideas", lengths::check),
    ("no blobs", blobs::check),
    ("the glossary is in order", glossary::check),
];

/// Runs all of them; 1 when any found something.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let repo = Repo::load()?;
    let mut mistakes = 0;
    for (name, check) in CHECKS {
        let found = check(&repo);
        println!("{} {name}", if found.is_empty() { "ok    " } else { "FAILED" });
        found.iter().for_each(|mistake| println!("         {mistake}"));
        mistakes += found.len();
    }
    println!("{} files, {} crates, {mistakes} mistakes", repo.files.len(), repo.crates.len());
    Ok(if mistakes == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
