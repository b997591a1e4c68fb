//! `serve`: one replica of the control plane, until it is told to stop.

use std::process::ExitCode;

use crate::args::{RunArgs, ServeArgs};
use crate::exit::{DONE, Outcome};
use crate::files::{FileError, Format, Source};

/// Runs the replica that a configuration file describes.
pub(super) fn run(args: &RunArgs) -> Outcome {
    super::log_to_stderr();
    let mut config = config(&args.serve)?;
    config.accept_torn_tail = args.accept_torn_tail;
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
