//! Columns without borders, and pages of `key  value`, as kubectl and squeue print them.

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, Color, Table, presets};

/// What a word's colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tint {
    /// As it should be.
    Good,
    /// On its way.
    Busy,
    /// Wants attention.
    Bad,
    /// Of little interest.
    Faint,
    /// Nothing.
    Plain,
}

impl Tint {
    /// What the state of a job, node, task, instance or GPU says.
    pub(super) fn of_state(state: &str) -> Tint {
        match state {
            "running" | "ready" | "up" | "active" | "completed" | "allocated" | "mixed" => {
                Tint::Good
            }
            "holding" | "starting" | "stopping" | "pending" | "warming" | "draining" | "held"
            | "bound" | "removing" | "cordoned" | "silent" => Tint::Busy,
            "failed" | "down" | "lost" => Tint::Bad,
            "cancelled" | "drained" | "unknown" | "exited" => Tint::Faint,
            _ => Tint::Plain,
        }
    }

    /// `text` in this tint.
    pub(super) fn paint(self, text: &str, colour: bool) -> String {
        let style = match self {
            Tint::Good => AnsiColor::Green.on_default(),
            Tint::Busy => AnsiColor::Yellow.on_default(),
            Tint::Bad => AnsiColor::Red.on_default().bold(),
            Tint::Faint => Style::new().dimmed(),
            Tint::Plain => Style::new(),
        };
        if colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// One cell of a table.
pub(super) enum Value {
    /// A word, to the left.
    Word(String),
    /// A state, to the left, tinted by what it says.
    State(String),
    /// A number, to the right.
    Number(String),
}

/// A word.
pub(super) fn word(text: impl ToString) -> Value {
    Value::Word(text.to_string())
}

/// A state.
pub(super) fn state(text: impl ToString) -> Value {
    Value::State(text.to_string())
}

/// A number.
pub(super) fn number(text: impl ToString) -> Value {
    Value::Number(text.to_string())
}

/// `rows` under `header`, each column as wide as it must be.
pub(super) fn columns(header: &[&str], rows: Vec<Vec<Value>>, colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if colour {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    let right: Vec<bool> = (0..header.len())
        .map(|at| rows.iter().any(|row| matches!(row.get(at), Some(Value::Number(_)))))
        .collect();
    let aligned = |right: bool| if right { CellAlignment::Right } else { CellAlignment::Left };
    let titles = header.iter().zip(&right);
    table.set_header(titles.map(|(title, &right)| Cell::new(title).set_alignment(aligned(right))));
    for row in rows {
        table.add_row(row.into_iter().map(cell));
    }
    let last = header.len().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at == last { 0 } else { 2 }));
    }
    table.trim_fmt()
}

fn cell(value: Value) -> Cell {
    match value {
        Value::Word(text) => Cell::new(text),
        Value::Number(text) => Cell::new(text).set_alignment(CellAlignment::Right),
        Value::State(text) => {
            let tint = Tint::of_state(&text);
            let cell = Cell::new(text);
            match tint {
                Tint::Good => cell.fg(Color::Green),
                Tint::Busy => cell.fg(Color::Yellow),
                Tint::Bad => cell.fg(Color::Red),
                Tint::Faint => cell.fg(Color::DarkGrey),
                Tint::Plain => cell,
            }
        }
    }
}

/// A page: a title and a line each for the pairs whose value is not empty.
pub(super) fn page(title: &str, pairs: &[(&str, String)], colour: bool) -> String {
    let shown: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = shown.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let bold = if colour { Style::new().bold() } else { Style::new() };
    let faint = if colour { Style::new().dimmed() } else { Style::new() };
    let mut text = format!("{bold}{title}{bold:#}");
    for (key, value) in shown {
        text += &format!("\n  {faint}{key:width$}{faint:#}  {value}");
    }
    text
}

/// Parts of a page with an empty line between, those without text left out.
pub(super) fn paragraphs(parts: impl IntoIterator<Item = String>) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n\n")
}
