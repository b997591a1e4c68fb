//! docs/glossary.md: one word, one meaning, in alphabetical order.

use std::collections::BTreeSet;

use crate::repo::Repo;

const FILE: &str = "docs/glossary.md";

/// Entries are lines that begin with a word in bold.
pub(crate) fn check(repo: &Repo) -> Vec<String> {
    let words: Vec<String> = repo.text(FILE).lines().filter_map(entry).collect();
    if words.is_empty() {
        return vec![format!("{FILE}: no entries; begin each with **word**:")];
    }
    let mut mistakes = Vec::new();
    for pair in words.windows(2).filter(|pair| pair[0] > pair[1]) {
        mistakes.push(format!("{FILE}: {} stands after {}; sort it", pair[1], pair[0]));
    }
    let mut seen = BTreeSet::new();
    let twice = words.iter().filter(|word| !seen.insert(word.as_str()));
    mistakes.extend(twice.map(|word| format!("{FILE}: {word} is there twice; keep one meaning")));
    mistakes
}

fn entry(line: &str) -> Option<String> {
    let (word, _) = line.strip_prefix("**")?.split_once("**")?;
    Some(word.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::repo;

    #[test]
    fn entries_are_sorted_and_single() {
        let check = |text| check(&repo(&[(FILE, text)]));
        assert_eq!(check("# Words\n\n**Agent**: a.\n\n**gang**: b.\n"), Vec::<String>::new());
        assert_eq!(check("**gang**: b.\n**agent**: a.\n").len(), 1);
        assert_eq!(check("**gang**: b.\n**gang**: c.\n").len(), 1);
        assert_eq!(check("# Words\n").len(), 1, "an empty glossary is a mistake");
    }
}
