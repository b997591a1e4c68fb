//! Builds the chaos binary as no other build is, and runs it.
//!
//! Its flags (`tokio_unstable` for repeatable runtimes, `rowen_planted` for bugs
//! planted on purpose, none of which is there unless it is asked for by name) must
//! never reach the shipped binary, and a cargo feature would: features of a
//! workspace are unified. Hence a target folder of its own.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, ensure};

use crate::repo;

/// Flags of the chaos build.
const RUSTFLAGS: &str = "--cfg tokio_unstable --cfg rowen_planted";
/// Where it is built.
const FOLDER: &str = "target/chaos";

/// `cargo xtask chaos ARGS`: ARGS are the binary's own.
pub(crate) fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let root = repo::root();
    let status = build(&root).status().context("cannot run cargo")?;
    ensure!(status.success(), "the chaos binary does not build");
    let binary = root.join(FOLDER).join("release/rowen-chaos");
    let status = Command::new(&binary).args(args).status();
    let status = status.with_context(|| format!("cannot run {}", binary.display()))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn build(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--package", "rowen-chaos"])
        .args(["--target-dir", FOLDER])
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // Fast, quick to build, and with every assertion that a debug build has.
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    cargo
}
