//! `fabric health list` and `set`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use rowen_api::v1::{
    GpuPart, ListHealthRequest, Part, PartReport, RailPart, SetHealthRequest, UplinkPart,
    part::Kind,
};
use serde::Serialize;

use super::Session;
use crate::client::fabric;
use crate::exit::{DONE, Outcome, UsageError};
use crate::output::health::{HealthView, show};
use crate::output::words;

/// Verbs of `fabric health`.
#[derive(Debug, Subcommand)]
pub(crate) enum HealthVerb {
    /// List what is faulty, since when, and what the domains above it can offer.
    #[command(visible_alias = "ls")]
    List,
    /// Say how GPUs or links are.
    Set(SetArgs),
}

/// `fabric health set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// `down`, `up`, or what is left of a link: 50%.
    #[arg(value_name = "STATE")]
    state: String,
    /// Of which: gpu:NODE/3, nvlink:NODE/3, rail:NODE/LEAF, uplink:LEAF/SPINE.
    #[arg(required = true, value_name = "PART")]
    parts: Vec<String>,
    /// It has been mended: trust it at once, not only after it has been up for a while.
    #[arg(long)]
    mended: bool,
    /// For whoever asks later.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

pub(super) async fn run(session: &mut Session, verb: HealthVerb) -> Outcome {
    match verb {
        HealthVerb::List => list(session).await,
        HealthVerb::Set(args) => set(session, args).await,
    }
}

async fn list(session: &mut Session) -> Outcome {
    let list = |ch| async move { fabric(ch).list_health(ListHealthRequest {}).await };
    let view = HealthView::new(&session.client.call(list).await?);
    let colour = session.out.colour;
    session.out.emit(&view, |view| show(view, colour))?;
    Ok(ExitCode::from(DONE))
}

/// What `fabric health set` prints for programs.
#[derive(Serialize)]
struct SetView {
    /// Log index that made it durable.
    index: u64,
    parts: usize,
}

async fn set(session: &mut Session, args: SetArgs) -> Outcome {
    let left_milli = left_milli(&args.state)?;
    let report = |text: &String| -> Result<PartReport, UsageError> {
        Ok(PartReport {
            part: Some(part(text)?),
            left_milli,
            mended: args.mended,
            reason: args.reason.clone(),
        })
    };
    let parts: Vec<PartReport> = args.parts.iter().map(report).collect::<Result<_, _>>()?;
    let view_parts = parts.len();
    let request = SetHealthRequest { request: session.client.request_id(), parts };
    let send = |ch| {
        let request = request.clone();
        async move { fabric(ch).set_health(request).await }
    };
    let index = session.client.call(send).await?.index;
    let view = SetView { index, parts: view_parts };
    session.out.emit(&view, |view| {
        let parts = words::count(view.parts as u64, "part");
        let trusted = match (left_milli, args.mended) {
            (1_000, false) => "; what was faulty is trusted once it has been up for a while",
            _ => "",
        };
        format!("{parts} {}{trusted}.", args.state)
    })?;
    Ok(ExitCode::from(DONE))
}

fn left_milli(state: &str) -> Result<u32, UsageError> {
    let wrong = || UsageError(format!("{state:?} is no state; write down, up or 50%"));
    match state {
        "down" => Ok(0),
        "up" => Ok(1_000),
        _ => {
            let percent: u32 =
                state.strip_suffix('%').and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
            (percent <= 100).then_some(percent * 10).ok_or_else(wrong)
        }
    }
}

fn part(text: &str) -> Result<Part, UsageError> {
    let wrong = || {
        UsageError(format!(
            "{text:?} is no part; write gpu:NODE/3, nvlink:NODE/3, rail:NODE/LEAF or uplink:LEAF/SPINE"
        ))
    };
    let (kind, names) = text.split_once(':').ok_or_else(wrong)?;
    let (of, to) = names.rsplit_once('/').ok_or_else(wrong)?;
    let (of, to) = (of.to_owned(), to.to_owned());
    let gpu = |node: String| Ok(GpuPart { node, gpu: to.parse().map_err(|_| wrong())? });
    let kind = match kind {
        "gpu" => Kind::Gpu(gpu(of)?),
        "nvlink" => Kind::Nvlink(gpu(of)?),
        "rail" => Kind::Rail(RailPart { node: of, leaf: to }),
        "uplink" => Kind::Uplink(UplinkPart { leaf: of, spine: to }),
        _ => return Err(wrong()),
    };
    Ok(Part { kind: Some(kind) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_states_are_words() {
        let rail = RailPart { node: "n1".into(), leaf: "leaf-2".into() };
        assert_eq!(part("rail:n1/leaf-2").unwrap().kind, Some(Kind::Rail(rail)));
        let gpu = GpuPart { node: "n1".into(), gpu: 3 };
        assert_eq!(part("gpu:n1/3").unwrap().kind, Some(Kind::Gpu(gpu)));
        for wrong in ["gpu:n1", "n1/3", "gpu:n1/x", "leaf:a/b"] {
            assert!(part(wrong).unwrap_err().0.contains("is no part; write gpu:NODE/3"), "{wrong}");
        }
        assert_eq!(left_milli("down").unwrap(), 0);
        assert_eq!(left_milli("50%").unwrap(), 500);
        assert!(left_milli("101%").is_err() && left_milli("slow").is_err());
    }
}
