//! serde's messages put into words for people: what is wrong, and what to write instead.
//!
//! Reads only messages of serde's own making; what our own types say passes through unchanged.

use super::schema::known_paths;
use super::{Kind, Problem};

/// Names that other systems use for what a job or filler file calls otherwise.
const ELSEWHERE: [(&str, &str); 25] = [
    ("args", "command"),
    ("chdir", "working_dir"),
    ("cmd", "command"),
    ("constraint", "nodes.labels"),
    ("cwd", "working_dir"),
    ("environment", "env"),
    ("gres", "resources.gpus"),
    ("gpu_models", "nodes.gpu_models"),
    ("max_instances", "instances.max"),
    ("mem", "resources.memory"),
    ("min_instances", "instances.min"),
    ("nodes", "workers"),
    ("nproc_per_node", "processes_per_worker"),
    ("ntasks", "workers"),
    ("ntasks_per_node", "processes_per_worker"),
    ("partition", "queue"),
    ("replicas", "instances.max"),
    ("replicas", "workers"),
    ("requeue", "restarts"),
    ("script", "command"),
    ("segment", "topology.groups"),
    ("node_selector", "nodes.labels"),
    ("switches", "topology.locality_wait"),
    ("timeout", "time_limit"),
    ("walltime", "time_limit"),
];

/// The problem at `path` that serde describes as `message`. A key of `kind` that was put at the
/// wrong depth is found in the kind's schema.
pub(super) fn problem(path: &str, message: &str, kind: Option<Kind>) -> Problem {
    let path = path.trim_start_matches('.');
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return unknown_key(path, rest, kind);
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        let field = quoted(rest).next().unwrap_or_default();
        return Problem::new(join(path, field), "missing; add it");
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        return unknown_word(path, rest);
    }
    if let Some(rest) = message.strip_prefix("invalid type: ") {
        let (found, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, ""));
        return Problem::new(
            path,
            format!("found {}; write {}", found_in_words(found), expected_in_words(expected)),
        );
    }
    if let Some(rest) = message.strip_prefix("invalid value: integer ") {
        let number = quoted(rest).next().unwrap_or_default();
        let text = match number.starts_with('-') {
            true => format!("{number} is negative; write a whole number from 0 up"),
            false => format!("{number} is too large; write a smaller number"),
        };
        return Problem::new(path, text);
    }
    Problem::new(path, message)
}

/// The one of `words` that a user who wrote `wrong` most likely meant.
pub(super) fn nearest<'a>(wrong: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.to_ascii_lowercase().replace(['_', '-', ' '], "");
    let wrong = plain(wrong);
    words
        .map(|word| (strsim::jaro_winkler(&wrong, &plain(word)), word))
        .filter(|&(score, _)| score > 0.84)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

fn unknown_key(path: &str, rest: &str, kind: Option<Kind>) -> Problem {
    let mut words = quoted(rest);
    let wrong = words.next().unwrap_or_default();
    // serde_path_to_error ends the path with the key itself, but only in some formats.
    let parent = match path.rsplit_once('.') {
        _ if path == wrong => "",
        Some((parent, last)) if last == wrong => parent,
        _ => path,
    };
    let siblings: Vec<&str> = words.collect();
    let known = kind.map(known_paths).unwrap_or_default();
    let deeper = |path: &&String| path.rsplit('.').next() == Some(wrong);
    let theirs =
        |&&(theirs, ours): &&(&str, &str)| theirs == wrong && known.iter().any(|path| path == ours);
    let suggestion = nearest(wrong, siblings.iter().copied())
        .or_else(|| known.iter().find(deeper).map(String::as_str))
        .or_else(|| ELSEWHERE.iter().find(theirs).map(|&(_, ours)| ours));
    let text = match (suggestion, kind) {
        (Some(key), _) => format!("unknown key; did you mean {key:?}?"),
        (None, Some(kind)) if siblings.len() > 8 => {
            format!("unknown key; `rowen schema {kind}` lists the known ones")
        }
        _ => format!("unknown key; write one of {}", siblings.join(", ")),
    };
    Problem::new(join(parent, wrong), text)
}

fn unknown_word(path: &str, rest: &str) -> Problem {
    let mut words = quoted(rest);
    let wrong = words.next().unwrap_or_default();
    let allowed: Vec<&str> = words.collect();
    let text = match nearest(wrong, allowed.iter().copied()) {
        Some(word) => format!("{wrong:?} is not known; did you mean {word:?}?"),
        None => format!("{wrong:?} is not known; write one of {}", allowed.join(", ")),
    };
    Problem::new(path, text)
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn join(parent: &str, field: &str) -> String {
    if parent.is_empty() { field.to_owned() } else { format!("{parent}.{field}") }
}

/// serde's `string "four"`, `` integer `4` ``, `map`, `null`.
fn found_in_words(found: &str) -> String {
    match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer" | "floating", number)) => {
            format!("the number {}", quoted(number).next().unwrap_or(number))
        }
        Some(("boolean", word)) => quoted(word).next().unwrap_or(word).to_owned(),
        _ => match found {
            "map" => "a table".to_owned(),
            "sequence" => "a list".to_owned(),
            "null" | "unit value" => "nothing".to_owned(),
            other => other.to_owned(),
        },
    }
}

fn expected_in_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number".to_owned(),
        "a string" => "a text in quotes".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a map" => "a table of keys".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") => "a table of keys".to_owned(),
        other => other.to_owned(),
    }
}
