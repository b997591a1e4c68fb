//! The text of a file, of any of the three formats, as one tree; and the tree as a typed value.
//!
//! All formats pass through the same tree so that they give the same answers: the same types, the
//! same errors, no key twice. Knows no field of any kind of file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{FileError, Kind, Problem, explain, schema};

/// No file may be larger. A fabric of 65,536 nodes listed one by one is about half of it.
const MAX_BYTES: u64 = 32 << 20;

/// What a file is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// YAML 1.2.
    Yaml,
    /// TOML 1.0.
    Toml,
    /// JSON.
    Json,
}

/// A parsed file, not yet checked against any schema.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    tree: Value,
}

impl Source {
    /// Reads the file `path` (`-`: standard input); without `format`, its ending tells.
    pub(crate) fn read(path: &str, format: Option<Format>) -> Result<Source, FileError> {
        let fail = |problem| FileError { file: path.to_owned(), problems: vec![problem] };
        let format = format.map_or_else(|| format_of(path), Ok).map_err(fail)?;
        let text = text_of(path, MAX_BYTES).map_err(fail)?;
        let tree = parse(&text, format).map_err(fail)?;
        Ok(Source { name: path.to_owned(), tree })
    }

    /// A file with nothing in it yet, filled by `set`; `name` stands in its errors.
    pub(crate) fn empty(name: &str) -> Source {
        Source { name: name.to_owned(), tree: Value::Object(Map::new()) }
    }

    /// Sets the value at a dotted path, making the tables on the way.
    pub(crate) fn set(&mut self, path: &str, value: Value) -> Result<(), FileError> {
        let mut at = &mut self.tree;
        for key in path.split('.') {
            let table =
                at.as_object_mut().filter(|_| !key.is_empty()).ok_or_else(|| FileError {
                    file: self.name.clone(),
                    problems: vec![Problem::new(path, "there is no such key to set")],
                })?;
            at = table.entry(key).or_insert_with(|| Value::Object(Map::new()));
        }
        *at = value;
        Ok(())
    }

    /// Sets what a user wrote as `key=value`: the value is JSON where it reads as JSON.
    pub(crate) fn set_text(&mut self, assignment: &str) -> Result<(), FileError> {
        let Some((path, text)) = assignment.split_once('=') else {
            let problem = format!("--set {assignment}: no value; write key=value");
            return Err(self.error(vec![Problem::new("", problem)]));
        };
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        self.set(path.trim(), value)
    }

    /// The value that the tree describes; the first thing that does not fit is the error.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, FileError> {
        self.decode_with(|path, message| explain::problem(path, message, None))
    }

    /// As `decode`, for a kind of file that has a schema: its keys help to suggest the right one.
    pub(super) fn decode_as<T: DeserializeOwned>(&self, kind: Kind) -> Result<T, FileError> {
        if let Some(path) = schema::list_for_table(kind, &self.tree) {
            return Err(self.error(vec![Problem::new(path, "found a list; write a table of keys")]));
        }
        self.decode_with(|path, message| explain::problem(path, message, Some(kind)))
    }

    fn decode_with<T: DeserializeOwned>(
        &self,
        explain: impl Fn(&str, &str) -> Problem,
    ) -> Result<T, FileError> {
        serde_path_to_error::deserialize(&self.tree).map_err(|error| {
            let path = error.path().to_string();
            self.error(vec![explain(&path, &error.inner().to_string())])
        })
    }

    /// The error of this file for `problems`.
    pub(crate) fn error(&self, problems: Vec<Problem>) -> FileError {
        FileError { file: self.name.clone(), problems }
    }
}

fn format_of(path: &str) -> Result<Format, Problem> {
    if path == "-" {
        let text = "standard input has no ending; add --format yaml, toml or json";
        return Err(Problem::new("", text));
    }
    match path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).as_deref() {
        Some("yaml" | "yml") => Ok(Format::Yaml),
        Some("toml") => Ok(Format::Toml),
        Some("json") => Ok(Format::Json),
        _ => {
            let text = "unknown ending; name it .yaml, .toml or .json, or add --format";
            Err(Problem::new("", text))
        }
    }
}

/// The text of a file that is none of Rowen's own.
pub(crate) fn read_text(path: &str, max_bytes: u64) -> Result<String, FileError> {
    text_of(path, max_bytes)
        .map_err(|problem| FileError { file: path.to_owned(), problems: vec![problem] })
}

fn text_of(path: &str, max_bytes: u64) -> Result<String, Problem> {
    let cannot = |error: io::Error| Problem::new("", format!("cannot read it: {error}"));
    let reader: Box<dyn io::Read> = match path {
        "-" => Box::new(io::stdin()),
        _ => Box::new(File::open(path).map_err(cannot)?),
    };
    let mut bytes = Vec::new();
    reader.take(max_bytes + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > max_bytes {
        let text = format!("larger than {} MiB; split it", max_bytes >> 20);
        return Err(Problem::new("", text));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Problem::new("", format!("not UTF-8 at byte {at}; save it as UTF-8"))
    })
}

fn parse(text: &str, format: Format) -> Result<Value, Problem> {
    let tree = match format {
        Format::Json => serde_json::from_str::<Tree>(text).map_err(|e| json_problem(&e)),
        Format::Toml => toml::from_str::<Tree>(text).map_err(|e| toml_problem(text, &e)),
        Format::Yaml => yaml(text),
    }?;
    match tree.0 {
        Value::Object(table) if table.is_empty() => Err(Problem::new("", "the file is empty")),
        Value::Null => Err(Problem::new("", "the file is empty")),
        Value::Object(table) => Ok(Value::Object(table)),
        _ => Err(Problem::new("", "not a table of keys; write `key: value` lines")),
    }
}

fn yaml(text: &str) -> Result<Tree, Problem> {
    // Keys that stand twice are refused below, with the same words in all formats.
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| yaml_problem(&e))
}

fn json_problem(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    located(error.line() as u64, error.column() as u64, text)
}

fn toml_problem(text: &str, error: &toml::de::Error) -> Problem {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() as u64 + 1;
    let message = error.message();
    let message = if message == "duplicate key" { "a key stands twice; keep one" } else { message };
    located(line, column, message)
}

fn yaml_problem(error: &serde_saphyr::Error) -> Problem {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let text = error.without_snippet().to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    located(line, column, text)
}

/// Whatever a parser says, on one line.
fn located(line: u64, column: u64, text: &str) -> Problem {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line {
        0 => Problem::new("", text),
        _ => Problem::new(format!("line {line}, column {column}"), text),
    }
}

/// Builds the tree; refuses a key that stands twice, which JSON's own tree would let pass.
struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Tree)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        let number = serde_json::Number::from_f64(value);
        number
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is not a finite number")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Tree(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut table = Map::new();
        while let Some((key, Tree(value))) = entries.next_entry::<String, Tree>()? {
            if key == TOML_DATETIME {
                return Ok(value);
            }
            if table.contains_key(&key) {
                return Err(de::Error::custom(format!("the key {key:?} stands twice; keep one")));
            }
            table.insert(key, value);
        }
        Ok(Value::Object(table))
    }
}

/// How the toml crate hands over a date or time: `time_limit = 01:30:00` without quotes is one.
const TOML_DATETIME: &str = "$__toml_private_datetime";
