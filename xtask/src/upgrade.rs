//! Builds an older revision's binary beside this one and runs a rolling upgrade with both.
//!
//! Owns the sources and the target folder of the older build, under `target/upgrade`. What must
//! hold of the upgrade is in `tests/e2e/cluster/upgrade.rs`.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, bail, ensure};

use crate::repo;

/// The first release: what an upgrade must be possible from. In full: a server gives no other.
const FIRST: &str = "aae210b2de21d27d9a2c5cf59d66168e3c7fedf5";
/// What `cargo test --workspace` turns on in dependencies that `rowen` alone would not: with the same
/// features the older build takes them as they are. Where this is not true any more, it builds them.
const TEST_FEATURES: &str = "tokio/test-util,serde_json/unbounded_depth";
const USAGE: &str = "usage: cargo xtask upgrade [--from REV] [--or-skip] [--json]";

/// `cargo xtask upgrade [--from REV] [--or-skip] [--json]`. `--or-skip`: a clone without REV is no
/// failure.
pub(crate) fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let (mut from, mut json, mut or_skip) = (FIRST.to_owned(), false, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--from" => from = args.next().context("--from: name a revision")?.clone(),
            "--json" => json = true,
            "--or-skip" => or_skip = true,
            other => bail!("{other}: unknown; {USAGE}"),
        }
    }
    let root = repo::root();
    let folder = root.join("target/upgrade");
    let Some(commit) = commit(&root, &from)? else {
        let missing = format!(
            "revision {from} is not in this clone; `git fetch --depth 1 origin {from}`, or \
             `git fetch --unshallow`, brings it"
        );
        ensure!(or_skip, missing);
        eprintln!("!!! SKIPPED: {missing}; NO upgrade was run");
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
        // As CI has just built it: another choice of packages is another choice of features.
        .args(["test", "--quiet", "--workspace", "--test", "e2e"])
        .args(["--", "--exact", "cluster::upgrade::replicas_of_two_builds_share_a_cluster"])
        .env("ROWEN_OLD", &old)
        .env("ROWEN_UPGRADE_REPORT", &report)
        .stdout(io::stderr())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the upgrade from {from} failed");
    let ending = if json { "json" } else { "txt" };
    let text = fs::read_to_string(report.with_extension(ending));
    println!("{}", text.context("the upgrade left no report: it did not run")?.trim_end());
    eprintln!("{} s in all", begun.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

/// The commit's full name; `None` where this clone does not have it, or is none.
fn commit(root: &Path, revision: &str) -> anyhow::Result<Option<String>> {
    let wanted = format!("{revision}^{{commit}}");
    let output = git(root).args(["rev-parse", "--quiet", "--verify", &wanted]).output();
    let output = output.context("cannot run git")?;
    let name = String::from_utf8(output.stdout)?.trim().to_owned();
    Ok((output.status.success() && !name.is_empty()).then_some(name))
}

/// The older binary: its sources and its target folder are kept for the next time.
fn build(root: &Path, folder: &Path, commit: &str) -> anyhow::Result<PathBuf> {
    let source = folder.join(&commit[..12]);
    if !source.join("Cargo.toml").exists() {
        unpack(root, commit, &source)?;
    }
    let target = folder.join("target");
    if !target.exists() {
        lend(&root.join("target/debug"), &target.join("debug"))?;
    }
    let built = cargo(&source)
        .args(["build", "--quiet", "--locked", "-p", "rowen", "--bin", "rowen"])
        .args(["--features", TEST_FEATURES, "--target-dir"])
        .arg(&target)
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "the older build failed in {}", source.display());
    Ok(target.join("debug/rowen"))
}

/// No worktree of git's: it would be in the books of a clone whose target folder was deleted.
fn unpack(root: &Path, commit: &str, into: &Path) -> anyhow::Result<()> {
    let aside = into.with_extension("new");
    let _ = fs::remove_dir_all(&aside); // of a run that was interrupted
    fs::create_dir_all(&aside)?;
    let mut archive = git(root)
        .args(["archive", "--format=tar", commit])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run git")?;
    let tar = archive.stdout.take().context("git has no output")?;
    let unpacked = Command::new("tar").arg("-xC").arg(&aside).stdin(tar).status();
    ensure!(unpacked.context("cannot run tar")?.success(), "tar failed in {}", aside.display());
    ensure!(archive.wait()?.success(), "git cannot read {commit}");
    fs::rename(&aside, into)?;
    Ok(())
}

/// Dependencies that were built here already need not be built again: they go along as links and
/// copies. Not the workspace's own crates: those of another revision have the same names.
fn lend(from: &Path, to: &Path) -> anyhow::Result<()> {
    for folder in ["deps", "build", ".fingerprint"] {
        fs::create_dir_all(to.join(folder))?;
        let Ok(entries) = fs::read_dir(from.join(folder)) else { continue }; // nothing is built yet
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let krate = name.strip_prefix("lib").unwrap_or(&name);
            if !krate.starts_with("rowen") && !krate.starts_with("xtask") {
                take(&entry.path(), &to.join(folder).join(&name), folder == "deps")?;
            }
        }
    }
    Ok(())
}

/// A file that cargo writes anew is another file then, so a link is safe; what it writes into, or
/// compares the time of, is a copy with its time.
fn take(from: &Path, to: &Path, link: bool) -> anyhow::Result<()> {
    let about = fs::metadata(from)?;
    if about.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            take(&entry.path(), &to.join(entry.file_name()), link)?;
        }
    } else if link {
        fs::hard_link(from, to)?;
    } else {
        fs::copy(from, to)?;
        fs::File::options().write(true).open(to)?.set_modified(about.modified()?)?;
    }
    Ok(())
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
