//! `version`.

use std::process::ExitCode;

use serde::Serialize;

use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// `version -o json`.
#[derive(Serialize)]
struct VersionView {
    version: &'static str,
    /// Of the protobuf package.
    api: &'static str,
    os: &'static str,
    arch: &'static str,
}

/// Prints the version of this binary; `status` has the cluster's.
pub(super) fn print(out: Output) -> Outcome {
    let view = VersionView {
        version: env!("CARGO_PKG_VERSION"),
        api: "rowen.v1",
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    out.emit(&view, |v| format!("rowen {} (api {}, {}-{})", v.version, v.api, v.arch, v.os))?;
    Ok(ExitCode::from(DONE))
}
