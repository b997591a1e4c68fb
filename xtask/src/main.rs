//! `cargo xtask`: what the repository checks about itself, and the chaos build.
//!
//! Owns rules about files, crates and documents that no compiler lint can hold.
//! It never changes a file.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for people at a terminal")]

mod chaos;
mod check;
mod checks;
mod repo;
mod upgrade;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask check
       cargo xtask chaos sim --seeds A..B | --seed N [--drop f3,o9-20] [--minimise] [--plant NAME] …
       cargo xtask chaos planted [--only NAME,...] [--within N] [--starts N] [--json]
       cargo xtask upgrade [--from REV] [--or-skip] [--json]";

fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("check") if args.len() == 1 => check::run(),
        Some("chaos") => chaos::run(&args[1..]),
        Some("upgrade") => upgrade::run(&args[1..]),
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}
