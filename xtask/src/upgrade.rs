//! Builds an older revision's binary beside this one and runs a rolling upgrade with both.
//!
//! Owns the worktree and the target folder of the older build, under `target/upgrade`. What must
//! hold of the upgrade is in `tests/e2e/cluster/upgrade.rs`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, bail, ensure};

use crate::repo;

/// The first release: what an upgrade must be possible from.
const FIRST: &str = "aae210b";

/// `cargo xtask upgrade [--from REV] [--json]`.
pub(crate) fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let (mut from, mut json) = (FIRST.to_owned(), false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--from" => from = args.next().context("--from: name a revision")?.clone(),
            "--json" => json = true,
            other => bail!("{other}: unknown; usage: cargo xtask upgrade [--from REV] [--json]"),
        }
    }
    let root = repo::root();
    let folder = root.join("target/upgrade");
    let Some(commit) = commit(&root, &from)? else {
        eprintln!("SKIPPED: revision {from} is not in this clone; fetch the whole history");
        return Ok(ExitCode::SUCCESS);
    };
    let begun = Instant::now();
    let old = build(&root, &folder, &commit)?;
    eprintln!("built {} in {} s", old.display(), begun.elapsed().as_secs());
    let report = folder.join("report");
    for ending in ["json", "txt"] {
        let _ = fs::remove_file(report.with_extension(ending)); // of the run before
    }
    let status = cargo(&root)
        .args(["test", "--quiet", "-p", "rowen", "--test", "e2e"])
        .args(["--", "--exact", "cluster::upgrade::replicas_of_two_builds_share_a_cluster"])
        .env("ROWEN_OLD", &old)
        .env("ROWEN_UPGRADE_REPORT", &report)
        .stdout(std::io::stderr())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the upgrade from {from} failed");
    let ending = if json { "json" } else { "txt" };
    let text = fs::read_to_string(report.with_extension(ending));
    println!("{}", text.context("the upgrade left no report: it did not run")?.trim_end());
    eprintln!("{} s in all", begun.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

/// The commit's full name; `None` where this clone does not have it.
fn commit(root: &Path, revision: &str) -> anyhow::Result<Option<String>> {
    let wanted = format!("{revision}^{{commit}}");
    let output = git(root).args(["rev-parse", "--quiet", "--verify", &wanted]).output();
    let output = output.context("cannot run git")?;
    let name = String::from_utf8(output.stdout)?.trim().to_owned();
    Ok((output.status.success() && !name.is_empty()).then_some(name))
}

/// The older binary: in a worktree and a target folder of its own, both kept for the next time.
fn build(root: &Path, folder: &Path, commit: &str) -> anyhow::Result<PathBuf> {
    let source = folder.join(&commit[..12]);
    if !source.join("Cargo.toml").exists() {
        fs::create_dir_all(folder)?;
        let _ = git(root).args(["worktree", "prune"]).status(); // of one whose folder was deleted
        let mut add = git(root);
        add.args(["worktree", "add", "--detach"]).arg(&source).arg(commit);
        let added = add.stdout(std::io::stderr()).status().context("cannot run git")?;
        ensure!(added.success(), "git cannot make a worktree in {}", source.display());
    }
    let target = folder.join("target");
    let built = cargo(&source)
        .args(["build", "--quiet", "--locked", "-p", "rowen", "--bin", "rowen", "--target-dir"])
        .arg(&target)
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "the older build failed in {}", source.display());
    Ok(target.join("debug/rowen"))
}

fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder);
    git
}

fn cargo(folder: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or(OsString::from("cargo")));
    cargo.current_dir(folder);
    cargo
}
