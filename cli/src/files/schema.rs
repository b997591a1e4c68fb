//! The JSON Schema of each kind of file, derived from the very types that read it.

use std::fmt;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{FillerFile, JobFile};

/// The kinds of files that people write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// What `job submit` reads.
    Job,
    /// What `filler deploy` reads.
    Filler,
    /// What `fabric set` reads.
    Fabric,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Job => "job",
            Kind::Filler => "filler",
            Kind::Fabric => "fabric",
        })
    }
}

/// The JSON Schema (2020-12) of a kind of file.
pub(crate) fn schema(kind: Kind) -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let schema = match kind {
        Kind::Job => generator.into_root_schema_for::<JobFile>(),
        Kind::Filler => generator.into_root_schema_for::<FillerFile>(),
        Kind::Fabric => generator.into_root_schema_for::<rowen_topology::Inventory>(),
    };
    schema.to_value()
}

/// The dotted paths of all keys of a kind of file, for suggestions.
pub(super) fn known_paths(kind: Kind) -> Vec<String> {
    let root = schema(kind);
    let mut paths = Vec::new();
    collect(&root, &root, "", &mut paths);
    paths
}

fn collect(root: &Value, at: &Value, prefix: &str, paths: &mut Vec<String>) {
    let at = resolve(root, at);
    let Some(properties) = at.get("properties").and_then(Value::as_object) else { return };
    for (key, value) in properties {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        collect(root, value, &path, paths);
        paths.push(path);
    }
}

/// The path of the first list that stands where the schema has a table. serde would take the
/// list's items for the table's fields, in an order that no file should depend on.
pub(super) fn list_for_table(kind: Kind, tree: &Value) -> Option<String> {
    fn find(root: &Value, at: &Value, tree: &Value, path: &str) -> Option<String> {
        let at = resolve(root, at);
        let properties = at.get("properties").and_then(Value::as_object)?;
        if tree.is_array() {
            return Some(path.to_owned());
        }
        let under =
            |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        properties.iter().find_map(|(key, value)| find(root, value, tree.get(key)?, &under(key)))
    }
    let root = schema(kind);
    find(&root, &root, tree, "")
}

/// Follows `$ref`, and the first real alternative of an optional value.
fn resolve<'a>(root: &'a Value, at: &'a Value) -> &'a Value {
    let first = at.get("anyOf").and_then(|any| any.get(0)).unwrap_or(at);
    let Some(name) = first.get("$ref").and_then(Value::as_str) else { return first };
    let pointer = name.trim_start_matches('#');
    root.pointer(pointer).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect_file;

    /// The schemas are kept as files too, for editors to point at.
    fn check(kind: Kind, file: expect_test::ExpectFile) {
        file.assert_eq(&(serde_json::to_string_pretty(&schema(kind)).unwrap() + "\n"));
    }

    #[test]
    fn job_schema() {
        check(Kind::Job, expect_file!["../../schemas/job.json"]);
    }

    #[test]
    fn filler_schema() {
        check(Kind::Filler, expect_file!["../../schemas/filler.json"]);
    }

    #[test]
    fn fabric_schema() {
        check(Kind::Fabric, expect_file!["../../schemas/fabric.json"]);
    }

    #[test]
    fn paths_reach_into_tables() {
        let paths = known_paths(Kind::Job);
        assert!(paths.contains(&"resources.gpus".to_owned()), "{paths:?}");
        assert!(paths.contains(&"topology.required".to_owned()));
        assert!(known_paths(Kind::Filler).contains(&"readiness.http".to_owned()));
    }
}
