//! `serve`: one replica of the control plane, until it is told to stop.

use std::process::ExitCode;

use crate::args::ServeArgs;
use crate::exit::{DONE, Outcome};
use crate::files::{Format, Source};

/// Runs the replica that a configuration file describes.
pub(super) fn run(args: &ServeArgs) -> Outcome {
    super::log_to_stderr();
    let path = args.config.to_string_lossy();
    let config: rowen_server::Config = Source::read(&path, Some(Format::Toml))?.decode()?;
    super::on_all_cores(async {
        rowen_server::serve(config, super::interrupted()?).await?;
        Ok(ExitCode::from(DONE))
    })
}
