//! `serve`: one replica of the control plane, until it is told to stop.

use std::process::ExitCode;

use crate::args::ServeArgs;
use crate::exit::{DONE, Outcome};
use crate::files::{FileError, Format, Source};

/// Runs the replica that a configuration file describes.
pub(super) fn run(args: &ServeArgs) -> Outcome {
    super::log_to_stderr();
    let config = config(args)?;
    super::on_all_cores(async {
        rowen_server::serve(config, super::interrupted()?).await?;
        Ok(ExitCode::from(DONE))
    })
}

/// The replica that the file describes.
pub(super) fn config(args: &ServeArgs) -> Result<rowen_server::Config, FileError> {
    let path = args.config.to_string_lossy();
    Source::read(&path, Some(Format::Toml))?.decode()
}
