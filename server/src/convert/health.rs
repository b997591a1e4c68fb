//! Faulty GPUs and links.

use rowen_api::v1::{self, part::Kind};
use rowen_state::{Cluster, FieldError, Health, Part, PartReport, Seer, WHOLE_MILLI};
use rowen_topology::{DomainId, FaultyLink, Level};

use super::fabric::narrow;

/// Longest reason, in bytes.
const REASON_BYTES: usize = 500;

/// What an operator says of parts.
pub fn part_reports(parts: Vec<v1::PartReport>) -> Result<Vec<PartReport>, FieldError> {
    parts.into_iter().enumerate().map(|(at, report)| part_report(at, report)).collect()
}

fn part_report(at: usize, report: v1::PartReport) -> Result<PartReport, FieldError> {
    let field = |name: &str| format!("parts[{at}].{name}");
    let missing = || FieldError::new(&field("part"), "is missing", "send a GPU or a link");
    let mut reason = report.reason;
    reason.truncate(reason.floor_char_boundary(REASON_BYTES));
    Ok(PartReport {
        part: part_from_proto(report.part.ok_or_else(missing)?, at)?,
        left_milli: narrow(report.left_milli, || field("left_milli"))?,
        mended: report.mended,
        seer: Seer::Operator,
        reason,
    })
}

fn part_from_proto(part: v1::Part, at: usize) -> Result<Part, FieldError> {
    let gpu = |gpu| narrow(gpu, || format!("parts[{at}].part.gpu"));
    let missing =
        || FieldError::new(&format!("parts[{at}].part"), "is empty", "send a GPU or a link");
    Ok(match part.kind.ok_or_else(missing)? {
        Kind::Gpu(part) => Part::Gpu { gpu: gpu(part.gpu)?, node: part.node },
        Kind::Nvlink(part) => {
            Part::Link(FaultyLink::NvLink { gpu: gpu(part.gpu)?, node: part.node })
        }
        Kind::Rail(v1::RailPart { node, leaf }) => Part::Link(FaultyLink::Rail { node, leaf }),
        Kind::Uplink(v1::UplinkPart { leaf, spine }) => {
            Part::Link(FaultyLink::Uplink { leaf, spine })
        }
    })
}

fn part_to_proto(part: &Part) -> v1::Part {
    let gpu = |node: &String, gpu: u16| v1::GpuPart { node: node.clone(), gpu: gpu.into() };
    let kind = match part {
        Part::Gpu { node, gpu: ordinal } => Kind::Gpu(gpu(node, *ordinal)),
        Part::Link(FaultyLink::NvLink { node, gpu: ordinal }) => Kind::Nvlink(gpu(node, *ordinal)),
        Part::Link(FaultyLink::Rail { node, leaf }) => {
            Kind::Rail(v1::RailPart { node: node.clone(), leaf: leaf.clone() })
        }
        Part::Link(FaultyLink::Uplink { leaf, spine }) => {
            Kind::Uplink(v1::UplinkPart { leaf: leaf.clone(), spine: spine.clone() })
        }
    };
    v1::Part { kind: Some(kind) }
}

/// Every faulty part, and the domains that offer less for it.
pub fn health_to_proto(view: &Cluster) -> v1::ListHealthResponse {
    let parts = view.health().map(|(part, health)| part_health(part, health)).collect();
    v1::ListHealthResponse {
        parts,
        domains: domains(view),
        index: view.applied(),
        now_ms: view.now_ms(),
    }
}

fn part_health(part: &Part, health: &Health) -> v1::PartHealth {
    v1::PartHealth {
        part: Some(part_to_proto(part)),
        left_milli: health.left_milli.into(),
        said_milli: health.said_milli.into(),
        said_ms: health.said_ms,
        since_ms: health.since_ms,
        relapses: health.relapses,
        by_agent: health.seer == Seer::Agent,
        reason: health.reason.clone(),
        trusted_ms: health.trusted_ms().unwrap_or(0),
    }
}

fn domains(view: &Cluster) -> Vec<v1::DomainHealth> {
    if view.impaired().is_empty() {
        return Vec::new();
    }
    let (index, offers) = (view.index(), view.offers());
    let gpus = |nodes: std::ops::Range<u32>| -> u32 {
        nodes.map(|pos| u32::from(index.gpu_count(rowen_topology::NodePos(pos)))).sum()
    };
    let mut domains = Vec::new();
    for level in [Level::Site, Level::Pod, Level::Block, Level::Nvlink] {
        for (ordinal, domain) in (0..).zip(index.domains(level)) {
            let (has, offers) =
                (gpus(domain.nodes.clone()), offers.gpus(DomainId { level, ordinal }));
            if offers < has {
                let (level, name) = (level.as_str().to_owned(), domain.name.clone());
                domains.push(v1::DomainHealth { level, name, gpus: has, offers_gpus: offers });
            }
        }
    }
    domains
}

/// What an agent says of its GPUs, as far as it is not known yet.
pub fn gpu_reports(view: &Cluster, node: &str, said: &v1::GpuHealth) -> Vec<PartReport> {
    let Some(row) = view.node_named(node) else { return Vec::new() };
    let news = |gpu: &v1::GpuTrouble| {
        let ordinal =
            u16::try_from(gpu.ordinal).ok().filter(|o| usize::from(*o) < row.gpus.len())?;
        let left_milli = if gpu.trouble.is_empty() { WHOLE_MILLI } else { 0 };
        let part = Part::Gpu { node: node.to_owned(), gpu: ordinal };
        let known = view.health_of(&part);
        let by_operator = known.is_some_and(|health| health.seer == Seer::Operator);
        let said_milli = known.map_or(WHOLE_MILLI, |health| health.said_milli);
        let new = said_milli != left_milli && !(by_operator && left_milli == WHOLE_MILLI);
        new.then(|| PartReport {
            part,
            left_milli,
            mended: false,
            seer: Seer::Agent,
            reason: gpu.trouble.chars().take(200).collect(),
        })
    };
    said.gpus.iter().filter_map(news).collect()
}
