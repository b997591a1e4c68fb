//! Exit codes, and which one an error becomes. Scripts rely on them: change none.

use std::process::ExitCode;

use tonic::Code;

use crate::client::CallError;
use crate::files::FileError;

/// Done.
pub(crate) const DONE: u8 = 0;
/// Failed.
pub(crate) const FAILED: u8 = 1;
/// Asked wrongly: the command line or a file.
pub(crate) const USAGE: u8 = 2;
/// Accepted, but it cannot be placed now.
pub(crate) const WAITS: u8 = 3;
/// Not allowed.
pub(crate) const DENIED: u8 = 4;
/// In conflict with what is.
pub(crate) const CONFLICT: u8 = 5;
/// The time to wait ran out.
pub(crate) const WAIT_EXPIRED: u8 = 124;
/// Under --wait: Rowen itself failed, not the job.
pub(crate) const ROWEN_FAILED: u8 = 125;

/// A command line that parses but makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// The exit code of an error.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    if error.is::<FileError>() || error.is::<UsageError>() {
        return USAGE;
    }
    match error.downcast_ref::<CallError>() {
        Some(CallError::Refused { status, .. }) => code_of_status(status.code()),
        Some(CallError::BadAddress { .. }) => USAGE,
        _ => FAILED,
    }
}

/// The exit code of what a server answered.
fn code_of_status(code: Code) -> u8 {
    match code {
        Code::InvalidArgument => USAGE,
        Code::PermissionDenied | Code::Unauthenticated => DENIED,
        Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => CONFLICT,
        _ => FAILED,
    }
}

/// A job's exit code as a process may return it; `None`: it has no code of its own.
pub(crate) fn code_of_job(exit_code: i32) -> Option<u8> {
    match exit_code {
        0 => None,
        1..=255 => u8::try_from(exit_code).ok(),
        // Outside of what wait(2) can tell; whatever it was, it was no success.
        _ => Some(FAILED),
    }
}

/// Either an exit code or an error that becomes one.
pub(crate) type Outcome = anyhow::Result<ExitCode>;

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn every_status_has_its_code() {
        let table = [
            (Code::InvalidArgument, USAGE),
            (Code::PermissionDenied, DENIED),
            (Code::Unauthenticated, DENIED),
            (Code::Aborted, CONFLICT),
            (Code::AlreadyExists, CONFLICT),
            (Code::FailedPrecondition, CONFLICT),
            (Code::NotFound, FAILED),
            (Code::Unavailable, FAILED),
            (Code::ResourceExhausted, FAILED),
            (Code::Internal, FAILED),
            (Code::Unknown, FAILED),
            (Code::DeadlineExceeded, FAILED),
        ];
        for (code, exit) in table {
            let status = Box::new(Status::new(code, "x"));
            let error = anyhow::Error::new(CallError::Refused { status });
            assert_eq!(code_of(&error), exit, "{code:?}");
        }
        assert_eq!(code_of(&anyhow::Error::new(UsageError("x".into()))), USAGE);
        let bad = CallError::BadAddress { addr: "x".into() };
        assert_eq!(code_of(&anyhow::Error::new(bad)), USAGE);
        assert_eq!(code_of(&anyhow::anyhow!("x")), FAILED);
    }

    #[test]
    fn job_codes() {
        let table = [
            (0, None),
            (1, Some(1)),
            (143, Some(143)),
            (255, Some(255)),
            (256, Some(1)),
            (-1, Some(1)),
        ];
        for (from, to) in table {
            assert_eq!(code_of_job(from), to, "{from}");
        }
    }
}
