//! The text of an `ibnetdiscover` dump: devices, and the cables between their ports.
//!
//! Reads lines, draws no conclusion: what is a leaf or a rail is found in `cabling`.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ImportError;

/// Ports have numbers of one byte; extended ones of a chassis do too.
const MAX_PORT: u32 = 255;
const FIX: &str = "give the unchanged output of ibnetdiscover";

/// A whole dump.
#[derive(Default)]
pub(super) struct Dump<'a> {
    pub(super) devices: Vec<Device<'a>>,
    /// Each once, whichever end told of it first.
    pub(super) cables: Vec<Cable>,
}

/// A switch, or one HCA of a machine.
pub(super) struct Device<'a> {
    pub(super) kind: Kind,
    /// `S-2c5eab0300b87b40`.
    pub(super) id: &'a str,
    /// What it says of itself: a switch's name, a host's and its HCA's.
    pub(super) description: &'a str,
    pub(super) devid: Option<u32>,
}

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Switch,
    Hca,
    Router,
}

/// One cable, its ends in ascending order.
#[derive(Clone, Copy)]
pub(super) struct Cable {
    /// Device and port.
    pub(super) ends: [(usize, u16); 2],
    /// One direction, where the dump tells.
    pub(super) gbps: Option<u32>,
}

impl<'a> Dump<'a> {
    pub(super) fn read(text: &'a str) -> Result<Dump<'a>, ImportError> {
        let mut reader = Reader::default();
        for (line, words) in (1..).zip(text.lines()) {
            reader.line(line, words.trim_end())?;
        }
        reader.finish()
    }
}

#[derive(Default)]
struct Reader<'a> {
    dump: Dump<'a>,
    at_of: BTreeMap<&'a str, usize>,
    /// The device whose ports are being listed.
    current: Option<usize>,
    devid: Option<u32>,
    /// What stands on the port lines, its far end by name: that device may come later.
    ports: Vec<Port<'a>>,
}

struct Port<'a> {
    line: u64,
    near: (usize, u16),
    far: (&'a str, u16),
    /// What the comment says of the far end.
    comment: &'a str,
}

impl<'a> Reader<'a> {
    fn line(&mut self, line: u64, text: &'a str) -> Result<(), ImportError> {
        let first = text.split_whitespace().next().unwrap_or_default();
        match first {
            "" => {}
            _ if first.starts_with('#') => {}
            "Switch" => self.device(line, Kind::Switch, text)?,
            "Ca" => self.device(line, Kind::Hca, text)?,
            "Rt" => self.device(line, Kind::Router, text)?,
            _ if first.starts_with('[') => self.port(line, text)?,
            // `-g` groups by chassis and says so in lines of their own.
            "Chassis" | "Spine" | "Line" | "Non-Chassis" => {}
            _ => self.key(line, text)?,
        }
        Ok(())
    }

    /// `devid=0x1021`; it stands before its device.
    fn key(&mut self, line: u64, text: &str) -> Result<(), ImportError> {
        let Some((key, value)) = text.split_once('=') else {
            let word: String = text.chars().take(40).collect();
            return Err(ImportError::at(line, "", format!("cannot read {word:?}"), FIX));
        };
        match key {
            "devid" => {
                let hex = value.trim().strip_prefix("0x").unwrap_or(value);
                let bad = || ImportError::at(line, "devid", "not a hexadecimal number", FIX);
                self.devid = Some(u32::from_str_radix(hex.trim(), 16).map_err(|_| bad())?);
            }
            "vendid" | "sysimgguid" | "switchguid" | "caguid" | "rtguid" => {}
            _ => {
                let key: String = key.chars().take(40).collect();
                return Err(ImportError::at(line, key, "not a key of a dump", FIX));
            }
        }
        Ok(())
    }

    /// `Switch 65 "S-2c5e…" # "MF0;leaf:MQM9701/U1" enhanced port 0 lid 73 lmc 0`.
    fn device(&mut self, line: u64, kind: Kind, text: &'a str) -> Result<(), ImportError> {
        let word = if kind == Kind::Switch { "Switch" } else { "Ca" };
        let (head, comment) = text.split_once('#').unwrap_or((text, ""));
        let id = quoted(head).filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| ImportError::at(line, word, "no GUID in quotes", FIX))?;
        let at = self.dump.devices.len();
        if self.at_of.insert(id, at).is_some() {
            let problem = format!("{id:?} is listed twice");
            return Err(ImportError::at(line, word, problem, "give one dump, not two"));
        }
        let description = quoted(comment).unwrap_or_default();
        let devid = self.devid.take();
        self.dump.devices.push(Device { kind, id, description, devid });
        self.current = Some(at);
        Ok(())
    }

    /// `[1](e09d) "S-2c5e"[65] # lid 193 lmc 0 "MF0;leaf:MQM9701/U1" lid 73 4xNDR`.
    fn port(&mut self, line: u64, text: &'a str) -> Result<(), ImportError> {
        let bad = |problem: &str| ImportError::at(line, "port", problem, FIX);
        let near = self.current.ok_or_else(|| bad("a port before any Switch or Ca line"))?;
        let (head, comment) = split_comment(text);
        let near_port = number(head).ok_or_else(|| bad("no port number in brackets"))?;
        let far = quoted(head).ok_or_else(|| bad("no GUID of the far end in quotes"))?;
        let after = head.rfind('"').map_or("", |at| &head[at + 1..]);
        let far_port = number(after).ok_or_else(|| bad("no port number of the far end"))?;
        let near = (near, near_port);
        self.ports.push(Port { line, near, far: (far, far_port), comment });
        Ok(())
    }

    fn finish(mut self) -> Result<Dump<'a>, ImportError> {
        let mut seen = BTreeSet::new();
        let mut used: BTreeMap<(usize, u16), (usize, u16)> = BTreeMap::new();
        for port in &std::mem::take(&mut self.ports) {
            let far = match self.at_of.get(port.far.0) {
                Some(&at) => at,
                None => self.untold(port)?,
            };
            let (near, far) = (port.near, (far, port.far.1));
            for (end, other) in [(near, far), (far, near)] {
                let other_known = *used.entry(end).or_insert(other);
                if other_known != other {
                    let id = self.dump.devices[end.0].id;
                    let problem = format!("port {} of {id} has two cables", end.1);
                    return Err(ImportError::at(port.line, "port", problem, FIX));
                }
            }
            let ends = if near <= far { [near, far] } else { [far, near] };
            if seen.insert(ends) {
                self.dump.cables.push(Cable { ends, gbps: speed(port.comment) });
            }
        }
        Ok(self.dump)
    }

    /// A device that only its cable tells of, as in a dump that was cut.
    fn untold(&mut self, port: &Port<'a>) -> Result<usize, ImportError> {
        let id = port.far.0;
        let kind = match id.get(..2) {
            Some("S-") => Kind::Switch,
            Some("H-") => Kind::Hca,
            Some("R-") => Kind::Router,
            _ => {
                let problem = format!("{id:?} is neither S-GUID nor H-GUID");
                return Err(ImportError::at(port.line, "port", problem, FIX));
            }
        };
        let at = self.dump.devices.len();
        self.at_of.insert(id, at);
        let description = quoted(port.comment).unwrap_or_default();
        self.dump.devices.push(Device { kind, id, description, devid: None });
        Ok(at)
    }
}

/// The comment begins at the first `#` after the far end's port: names may hold one too.
fn split_comment(text: &str) -> (&str, &str) {
    text.split_once('#').unwrap_or((text, ""))
}

/// What stands between the first two quotes.
fn quoted(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('"')?;
    rest.split_once('"').map(|(inner, _)| inner)
}

/// The number in the brackets at the head.
fn number(text: &str) -> Option<u16> {
    let (inner, _) = text.trim_start().strip_prefix('[')?.split_once(']')?;
    let number: u32 = inner.trim().parse().ok()?;
    (number <= MAX_PORT).then_some(number as u16)
}

/// `4xNDR` at the end of a comment: width times the rate of a lane, as it is sold.
fn speed(comment: &str) -> Option<u32> {
    let (width, rate) = comment.split_whitespace().last()?.split_once('x')?;
    let width: u32 = width.parse().ok().filter(|width| (1..=12).contains(width))?;
    let four_lanes = match rate {
        "SDR" => 10,
        "DDR" => 20,
        "QDR" | "FDR10" => 40,
        "FDR" => 56,
        "EDR" => 100,
        "HDR" => 200,
        "NDR" => 400,
        "XDR" => 800,
        _ => return None,
    };
    Some(width * four_lanes / 4)
}
