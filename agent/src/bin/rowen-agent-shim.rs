//! `shim TASK_DIR` and `probe-gpus` alone, so that this crate's tests need no
//! other crate. `rowen` does the same; nothing else belongs here.

use std::{env, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().collect();
    match args.get(1).and_then(|verb| verb.to_str()) {
        Some("shim") if args.len() == 3 => rowen_agent::shim::run(Path::new(&args[2])),
        Some("probe-gpus") => rowen_agent::discover::probe_main(),
        _ => ExitCode::from(2),
    }
}
