//! The state of the cluster on the screen.

use anstyle::{AnsiColor, Style};
use rowen_api::v1::ClusterStatus;
use serde::Serialize;

use super::table::{Tint, columns, number, page, paragraphs, word};
use super::words;

/// Cells of the bar that shows what the GPU time went to.
const BAR: u64 = 50;

/// `status -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    version: String,
    /// The one that answered.
    replica: u64,
    replicas: Vec<ReplicaView>,
    term: u64,
    applied_index: u64,
    /// The state's clock.
    unix_ms: u64,
    /// Hex; the same on every replica at the same index.
    state_hash: String,
    incarnation: u64,
    gpus: u32,
    /// Some agent simulates its GPUs.
    simulated: bool,
    jobs_queued: u32,
    jobs_running: u32,
    evictions: u64,
    /// Where the GPU time went; the four sum to GPUs × elapsed.
    gpu_time: GpuTimeView,
    usage: Vec<UsageView>,
    /// Of the invariants; empty is good.
    violations: Vec<String>,
    wal_syncs: u64,
}

/// One member of the Raft group.
#[derive(Debug, Serialize)]
struct ReplicaView {
    id: u64,
    addr: String,
    leader: bool,
}

/// GPU-milliseconds since each GPU was added.
#[derive(Debug, Serialize)]
struct GpuTimeView {
    gang_gpu_ms: u64,
    filler_gpu_ms: u64,
    idle_gpu_ms: u64,
    down_gpu_ms: u64,
}

/// What one tenant used.
#[derive(Debug, Serialize)]
struct UsageView {
    tenant: String,
    /// gang or filler.
    class: String,
    gpu_model: String,
    gpu_ms: u64,
}

impl StatusView {
    pub(crate) fn new(status: &ClusterStatus) -> StatusView {
        StatusView {
            version: status.version.clone(),
            replica: status.replica,
            replicas: status
                .replicas
                .iter()
                .map(|r| ReplicaView { id: r.id, addr: r.addr.clone(), leader: r.leader })
                .collect(),
            term: status.term,
            applied_index: status.applied,
            unix_ms: status.now_ms,
            state_hash: status.state_hash.clone(),
            incarnation: status.incarnation,
            gpus: status.gpus,
            simulated: status.simulated,
            jobs_queued: status.jobs_queued,
            jobs_running: status.jobs_running,
            evictions: status.evictions,
            gpu_time: GpuTimeView {
                gang_gpu_ms: status.gang_gpu_ms,
                filler_gpu_ms: status.filler_gpu_ms,
                idle_gpu_ms: status.idle_gpu_ms,
                down_gpu_ms: status.down_gpu_ms,
            },
            usage: status
                .usage
                .iter()
                .map(|line| UsageView {
                    tenant: line.tenant.clone(),
                    class: line.class.clone(),
                    gpu_model: line.gpu_model.clone(),
                    gpu_ms: line.gpu_ms,
                })
                .collect(),
            violations: status.violations.clone(),
            wal_syncs: status.wal_syncs,
        }
    }
}

impl GpuTimeView {
    fn parts(&self) -> [(&'static str, u64, Style); 4] {
        [
            ("gangs", self.gang_gpu_ms, AnsiColor::Yellow.on_default()),
            ("fillers", self.filler_gpu_ms, AnsiColor::Cyan.on_default()),
            ("idle", self.idle_gpu_ms, Style::new().dimmed()),
            ("down", self.down_gpu_ms, AnsiColor::Red.on_default()),
        ]
    }

    /// `gangs 61.9 %, fillers 31.0 %, idle 7.1 %, down 0.0 %`.
    fn shares(&self) -> String {
        let total = self.total().max(1);
        let share = |(name, ms, _): (&str, u64, Style)| {
            let permille = (u128::from(ms) * 1_000 + u128::from(total) / 2) / u128::from(total);
            format!("{name} {}.{} %", permille / 10, permille % 10)
        };
        self.parts().map(share).join(", ")
    }

    /// The same as a bar: `gggggff..`.
    fn bar(&self, colour: bool) -> String {
        let total = self.total();
        if total == 0 {
            return String::new();
        }
        let (mut sum, mut drawn, mut text) = (0u128, 0, String::new());
        for ((_, ms, style), mark) in self.parts().into_iter().zip(["g", "f", ".", "x"]) {
            sum += u128::from(ms);
            // Rounding the running sum makes the parts fill the bar exactly.
            let end =
                ((sum * u128::from(BAR) + u128::from(total) / 2) / u128::from(total)) as usize;
            let cells = end - drawn;
            drawn = end;
            match colour {
                _ if cells == 0 => {}
                true => text += &format!("{style}{}{style:#}", "█".repeat(cells)),
                false => text += &mark.repeat(cells),
            }
        }
        text
    }

    fn total(&self) -> u64 {
        self.parts().iter().map(|part| part.1).sum()
    }
}

/// `status`.
pub(crate) fn show(view: &StatusView, colour: bool) -> String {
    let simulated = if view.simulated { ", simulated" } else { "" };
    let replicas: Vec<String> = view
        .replicas
        .iter()
        .map(|r| format!("{} at {}{}", r.id, r.addr, if r.leader { " (leader)" } else { "" }))
        .collect();
    let violations = match view.violations.as_slice() {
        [] => Tint::Good.paint("all hold", colour),
        some => Tint::Bad.paint(&some.join("; "), colour),
    };
    let pairs = [
        ("Replicas", replicas.join(", ")),
        (
            "Log",
            format!(
                "term {}, applied {}, incarnation {}",
                view.term, view.applied_index, view.incarnation
            ),
        ),
        ("State hash", view.state_hash.clone()),
        ("Clock", words::utc(view.unix_ms)),
        ("Invariants", violations),
        ("Jobs", format!("{} running, {} queued", view.jobs_running, view.jobs_queued)),
        ("GPUs", format!("{}{simulated}", view.gpus)),
        ("GPU time", view.gpu_time.shares()),
        ("", view.gpu_time.bar(colour)),
        ("Evictions", view.evictions.to_string()),
    ];
    let title = format!("Rowen {}", view.version);
    paragraphs([page(&title, &pairs, colour), usage(&view.usage, colour)])
}

fn usage(lines: &[UsageView], colour: bool) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let row = |line: &UsageView| {
        vec![
            word(&line.tenant),
            word(&line.class),
            word(&line.gpu_model),
            number(words::gpu_time(line.gpu_ms)),
        ]
    };
    columns(&["TENANT", "CLASS", "MODEL", "USED"], lines.iter().map(row).collect(), colour)
}
