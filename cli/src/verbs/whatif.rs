//! `whatif`: what would come of changes. Asks a replica, which copies its state; or works on a
//! moment that a data folder still reaches. Nothing is proposed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;
use rowen_api::v1::{Change, WhatIfRequest, WhatIfResponse, change::Kind};

use super::{Session, client, submit};
use crate::args::GlobalArgs;
use crate::client::jobs;
use crate::exit::{DONE, Outcome, UsageError};
use crate::output::Output;
use crate::output::whatif::{WhatIfView, show};

/// Arguments of `whatif`. Drains come first, then undrains, cancels and submits.
#[derive(Debug, Args)]
pub(crate) struct WhatIfArgs {
    /// Drain a node, a rack, a host list, or a domain of any level.
    #[arg(long, value_name = "NAME")]
    drain: Vec<String>,
    /// Put such nodes back in service.
    #[arg(long, value_name = "NAME")]
    undrain: Vec<String>,
    /// Cancel a job.
    #[arg(long, value_name = "JOB")]
    cancel: Vec<String>,
    /// Submit the job of a file.
    #[arg(long, value_name = "FILE")]
    submit: Vec<String>,
    /// As of this entry of the log: with --data any that it reaches, else one not older than that.
    #[arg(long, value_name = "INDEX")]
    at: Option<u64>,
    /// Data folder of a stopped replica, or a copy of one, instead of a running cluster.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(super) fn run(global: &GlobalArgs, args: WhatIfArgs) -> Outcome {
    let request = request(&args)?;
    if let Some(data) = &args.data {
        let replay = rowen_server::replay(data, args.at, None)?;
        let answer = rowen_server::what_if(&replay.cluster, request);
        let answer = answer.map_err(|status| anyhow!("{}", status.message()))?;
        return print(Output::new(global.output), &answer);
    }
    let read = args.at.map(|index| index.to_string()).or_else(|| global.read.clone());
    client(&GlobalArgs { read, ..global.clone() }, async |session: &mut Session| {
        let send = |ch| {
            let request = request.clone();
            async move { jobs(ch).what_if(request).await }
        };
        let answer = session.client.call(send).await?;
        print(session.out, &answer)
    })
}

fn request(args: &WhatIfArgs) -> anyhow::Result<WhatIfRequest> {
    let mut changes: Vec<Kind> = Vec::new();
    changes.extend(args.drain.iter().cloned().map(Kind::Drain));
    changes.extend(args.undrain.iter().cloned().map(Kind::Undrain));
    changes.extend(args.cancel.iter().cloned().map(Kind::Cancel));
    for file in &args.submit {
        changes.push(Kind::Submit(submit::spec_of(file)?));
    }
    if changes.is_empty() {
        let text = "name a change: --drain, --undrain, --cancel or --submit";
        return Err(UsageError(text.to_owned()).into());
    }
    let changes = changes.into_iter().map(|kind| Change { kind: Some(kind) }).collect();
    Ok(WhatIfRequest { changes })
}

fn print(out: Output, answer: &WhatIfResponse) -> Outcome {
    let view = WhatIfView::new(answer);
    out.emit(&view, |view| show(view, out.wide(), out.colour))?;
    Ok(ExitCode::from(DONE))
}
