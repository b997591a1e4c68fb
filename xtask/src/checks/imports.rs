//! The table of ARCHITECTURE.md says which crate imports which: exactly.

use std::collections::{BTreeMap, BTreeSet};

use crate::repo::Repo;

const FILE: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- imports -->";
const END: &str = "<!-- /imports -->";

type Table = BTreeMap<String, BTreeSet<String>>;

/// Every row a crate, every cell an import that is there, none missing.
pub(crate) fn check(repo: &Repo) -> Vec<String> {
    let Some(table) = table(repo.text(FILE)) else {
        return vec![format!("{FILE}: no table between {BEGIN} and {END}; write one")];
    };
    let members: BTreeSet<&str> = repo.crates.iter().map(|member| member.name.as_str()).collect();
    let mut mistakes = Vec::new();
    for member in &repo.crates {
        let imports: BTreeSet<String> =
            member.names.iter().filter(|name| members.contains(name.as_str())).cloned().collect();
        let Some(row) = table.get(&member.name) else {
            mistakes.push(format!("{FILE}: no row for {}; add one", member.name));
            continue;
        };
        mistakes.extend(imports.difference(row).map(|import| {
            format!("{} imports {import}: {FILE} does not allow it", member.manifest)
        }));
        mistakes.extend(row.difference(&imports).map(|import| {
            format!("{FILE}: {} does not import {import}; take it out of the row", member.name)
        }));
    }
    let unknown = table.keys().filter(|name| !members.contains(name.as_str()));
    mistakes.extend(unknown.map(|name| format!("{FILE}: there is no crate {name}; drop its row")));
    mistakes
}

/// Words in backquotes: the first of a row is the crate, the others its imports.
fn table(text: &str) -> Option<Table> {
    let (_, rest) = text.split_once(BEGIN)?;
    let (table, _) = rest.split_once(END)?;
    let rows = table.lines().filter(|line| line.starts_with('|')).filter_map(|line| {
        let mut words = line.split('`').skip(1).step_by(2).map(str::to_owned);
        Some((words.next()?, words.collect()))
    });
    Some(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::{repo, with_crate};

    const TABLE: &str = "# Map\n<!-- imports -->\n| crate | may import |\n|---|---|\n| `low` | – |\n| `high` | `low` |\n<!-- /imports -->\n";

    fn fixture(table: &str) -> Repo {
        let repo = with_crate(repo(&[(FILE, table)]), "low", &["serde"], &[]);
        with_crate(repo, "high", &["low", "serde"], &[])
    }

    #[test]
    fn the_table_must_say_what_is() {
        assert_eq!(check(&fixture(TABLE)), Vec::<String>::new());
        for (from, to, mistake) in [
            (
                "`high` | `low`",
                "`high` | –",
                "high/Cargo.toml imports low: ARCHITECTURE.md does not allow it",
            ),
            (
                "`low` | –",
                "`low` | `high`",
                "ARCHITECTURE.md: low does not import high; take it out of the row",
            ),
            ("| `low` | – |\n", "", "ARCHITECTURE.md: no row for low; add one"),
            (
                "| `low` | – |\n",
                "| `low` | – |\n| `gone` | – |\n",
                "ARCHITECTURE.md: there is no crate gone; drop its row",
            ),
        ] {
            assert_eq!(check(&fixture(&TABLE.replace(from, to))), [mistake]);
        }
        assert_eq!(check(&fixture("# Map\n")).len(), 1, "no table is a mistake");
    }
}
