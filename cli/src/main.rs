//! The one binary `rowen`: what a person, a script or an init system calls.
//!
//! Owns the command line, the files people write and what is printed. Every rule of scheduling
//! lives below; nothing here decides where or when anything runs.

mod args;
mod client;
mod exit;
mod files;
mod output;
mod verbs;

mod bench;
mod cluster;
mod demo;
mod dev;

use std::io;
use std::process::ExitCode;

use clap::Parser as _;

use crate::output::{may_colour, note};

/// A replica under load spends a sixth of its time in glibc's allocator, much of it on memory that
/// one thread took and another gives back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As a shell sees a process that SIGPIPE ended.
const BROKEN_PIPE: u8 = 141;

fn main() -> ExitCode {
    if let Some(code) = internal() {
        return code;
    }
    let args = args::RowenArgs::parse();
    verbs::run(args).unwrap_or_else(|error| fail(&error))
}

/// What Rowen starts by itself, thousands of times: before the command line is parsed and before
/// any thread runs.
fn internal() -> Option<ExitCode> {
    let mut argv = std::env::args_os().skip(1);
    match argv.next()?.to_str()? {
        "shim" => {
            let dir = argv.next()?;
            Some(rowen_agent::shim::run(dir.as_ref()))
        }
        "probe-gpus" => Some(rowen_agent::discover::probe_main()),
        "demo-worker" => Some(demo::worker::run()),
        "demo-filler" => Some(demo::filler::run()),
        "cluster-guard" => Some(cluster::guard()),
        _ => None,
    }
}

/// Prints an error on one line (a file's problems on a line each) and chooses the exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::from(BROKEN_PIPE);
    }
    // A file's problems begin with its name, so that editors and people can jump there.
    if error.is::<files::FileError>() {
        note(&error.to_string());
    } else {
        let text = format!("{error:#}");
        let colour = io::IsTerminal::is_terminal(&io::stderr()) && may_colour();
        let style = anstyle::AnsiColor::Red.on_default().bold();
        match colour {
            true => note(&format!("{style}error:{style:#} {text}")),
            false => note(&format!("error: {text}")),
        }
    }
    ExitCode::from(exit::code_of(error))
}

/// Whoever read our output (`| head`) has seen enough: no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(broken)
}
