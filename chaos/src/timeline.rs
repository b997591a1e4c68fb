//! A drawn run: one lane for the leader, one for each agent, one for each GPU, with
//! whose processes lived there and the faults that fell.
//!
//! Owns spans and marks and how they look. Never used by a check.

use std::{collections::BTreeMap, fmt::Write as _};

use rowen_state::{GpuMask, Owner};

use crate::message::MachineAt;

/// A row of the drawing, in the order in which they are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Who leads; what was found.
    Control,
    Agent(MachineAt),
    Frozen(MachineAt),
    Gpu(MachineAt, u32),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    open: BTreeMap<Lane, Span>,
    spans: Vec<(Lane, Span)>,
    marks: Vec<(Lane, u64, String)>,
    end_ms: u64,
}

#[derive(Clone, Debug)]
struct Span {
    from_ms: u64,
    to_ms: u64,
    label: String,
    hue: u64,
}

/// Pixels.
const WIDTH: u64 = 1_500;
const LEFT: u64 = 130;
const ROW: u64 = 16;

impl Timeline {
    /// A lane is taken from now on.
    pub(crate) fn begin(&mut self, lane: Lane, label: String, now_ms: u64) {
        self.begin_in(lane, label, 210, now_ms);
    }

    fn begin_in(&mut self, lane: Lane, label: String, hue: u64, now_ms: u64) {
        self.end(lane, now_ms);
        self.open.insert(lane, Span { from_ms: now_ms, to_ms: now_ms, label, hue });
    }

    /// It is free again.
    pub(crate) fn end(&mut self, lane: Lane, now_ms: u64) {
        if let Some(span) = self.open.remove(&lane) {
            self.spans.push((lane, Span { to_ms: now_ms, ..span }));
        }
    }

    /// Both ends are known.
    pub(crate) fn span(&mut self, lane: Lane, label: &str, from_ms: u64, to_ms: u64) {
        self.spans.push((lane, Span { from_ms, to_ms, label: label.into(), hue: 0 }));
    }

    /// Something happens at a moment.
    pub(crate) fn mark(&mut self, lane: Lane, label: String, now_ms: u64) {
        self.marks.push((lane, now_ms, label));
    }

    /// Processes of an owner live on GPUs from now on.
    pub(crate) fn runs(&mut self, machine: MachineAt, gpus: GpuMask, owner: Owner, now_ms: u64) {
        let (label, hue) = match owner {
            Owner::Gang { job, attempt } => (format!("job {job}, {attempt}"), job.0 * 47 % 360),
            Owner::Instance { filler, number } => (format!("filler {filler} #{number}"), 120),
        };
        for gpu in gpus.iter() {
            self.begin_in(Lane::Gpu(machine, gpu), label.clone(), hue, now_ms);
        }
    }

    /// No more.
    pub(crate) fn ended(&mut self, machine: MachineAt, gpus: GpuMask, now_ms: u64) {
        gpus.iter().for_each(|gpu| self.end(Lane::Gpu(machine, gpu), now_ms));
    }

    /// The run is over.
    pub(crate) fn closed(mut self, now_ms: u64) -> Timeline {
        for lane in self.open.keys().copied().collect::<Vec<_>>() {
            self.end(lane, now_ms);
        }
        self.end_ms = now_ms;
        self
    }

    /// The last `last_ms` of the run as one SVG file; a pointer held over anything names it.
    pub(crate) fn svg(&self, title: &str, last_ms: u64) -> String {
        let from_ms = self.end_ms.saturating_sub(last_ms);
        let x = |at_ms: u64| {
            let at_ms = at_ms.clamp(from_ms, self.end_ms) - from_ms;
            LEFT + at_ms * (WIDTH - LEFT) / (self.end_ms - from_ms).max(1)
        };
        let spans = self.spans.iter().map(|(lane, _)| *lane);
        let mut lanes: Vec<Lane> = spans.chain(self.marks.iter().map(|(lane, ..)| *lane)).collect();
        lanes.sort_unstable();
        lanes.dedup();
        let y = |lane: &Lane| 40 + ROW * lanes.binary_search(lane).expect("all were listed") as u64;
        let height = 60 + ROW * lanes.len() as u64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"monospace\" font-size=\"10\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"4\" y=\"14\">{}</text>\n",
            escape(title)
        );
        for tick in 0..=10 {
            let at_ms = from_ms + (self.end_ms - from_ms) * tick / 10;
            let (x, to) = (x(at_ms), height - 16);
            let _ = writeln!(
                svg,
                "<path d=\"M{x} 28V{to}\" stroke=\"#ddd\"/><text x=\"{x}\" y=\"26\" text-anchor=\"middle\">{} s</text>",
                at_ms / 1_000
            );
        }
        for lane in &lanes {
            let _ = writeln!(svg, "<text x=\"4\" y=\"{}\">{}</text>", y(lane) + 11, name(*lane));
        }
        for (lane, span) in self.spans.iter().filter(|(_, span)| span.to_ms > from_ms) {
            let (left, right) = (x(span.from_ms), x(span.to_ms));
            let (width, hue, label) = ((right - left).max(1), span.hue, escape(&span.label));
            let (from_ms, to_ms) = (span.from_ms, span.to_ms);
            let _ = writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{}\" width=\"{width}\" height=\"{}\" fill=\"hsl({hue},60%,75%)\"><title>{label}: {from_ms} to {to_ms} ms</title></rect>",
                y(lane),
                ROW - 3
            );
            if width > 7 * label.len() as u64 {
                let _ =
                    writeln!(svg, "<text x=\"{}\" y=\"{}\">{label}</text>", left + 2, y(lane) + 10);
            }
        }
        for (lane, at_ms, label) in self.marks.iter().filter(|(_, at_ms, _)| *at_ms >= from_ms) {
            let (x, y, label) = (x(*at_ms), y(lane), escape(label));
            let _ = writeln!(
                svg,
                "<path d=\"M{x} {y}l4 6l-4 6l-4 -6z\" fill=\"#c00\"><title>{label}: {at_ms} ms</title></path>"
            );
        }
        svg + "</svg>\n"
    }
}

fn name(lane: Lane) -> String {
    match lane {
        Lane::Control => "leader".into(),
        Lane::Agent(machine) => format!("m{machine} agent"),
        Lane::Frozen(machine) => format!("m{machine} frozen"),
        Lane::Gpu(machine, gpu) => format!("m{machine} GPU {gpu}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use rowen_state::JobId;

    use super::*;

    #[test]
    fn a_lane_shows_who_was_on_it() {
        let mut timeline = Timeline::default();
        timeline.begin(Lane::Control, "term 2".into(), 500);
        let owner = Owner::Gang { job: JobId(7), attempt: 2 };
        timeline.runs(1, GpuMask::first(2), owner, 1_000);
        timeline.ended(1, GpuMask::one(0), 2_000);
        timeline.mark(Lane::Agent(1), "cut <link>".into(), 1_500);
        let svg = timeline.closed(3_000).svg("seed 1", 10_000);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(
            svg.contains("job 7, 2: 1000 to 2000 ms") && svg.contains("job 7, 2: 1000 to 3000 ms")
        );
        assert!(
            svg.contains("cut &lt;link&gt;: 1500 ms") && svg.contains("term 2: 500 to 3000 ms")
        );
    }
}
