//! The table as text.

use std::fmt::Write;

use super::results::{COLUMNS, Outcomes};
use super::statements::{DIFFERENCES, PENDING, STATEMENTS, Statement};

const HEAD: &str = "# Conformance

What the system promises, statement by statement, and the tests that hold it to that. Made by `cargo xtask conformance`, which
runs the tests; not to be edited.

Where a statement is about behaviour that can be observed, the same code tests it in several columns:

| column | whose calls | on what |
|---|---|---|
| kernel | the kernel's | a file, and anonymous memory: the oracle |
| paged | ours | a paged object: a store behind a cache, under a budget |
| anonymous | ours | anonymous memory |
| device | ours | a file or device that the kernel maps |

";

/// What is wrong: statements without tests, tests of no statement, tests that failed, exceptions that are none any more.
pub(super) fn complaints(outcomes: &Outcomes) -> Vec<String> {
    let mut complaints = Vec::new();
    for statement in all() {
        let number = statement.number;
        let (tested, pending) = (outcomes.of(number).next().is_some(), PENDING.contains(&number));
        if !tested && !pending {
            complaints.push(format!("{number} has no test: {}", statement.says));
        }
        if tested && pending {
            complaints.push(format!("{number} has tests, and is called pending in xtask's statements"));
        }
        for (test, columns) in outcomes.of(number) {
            for (column, _) in columns.iter().filter(|(_, passed)| !**passed) {
                complaints.push(format!("{test} failed ({column})"));
            }
        }
    }
    for number in outcomes.statements().filter(|number| !all().any(|s| s.number == **number)) {
        complaints.push(format!("there is no statement {number}, and tests of it"));
    }
    for (number, ..) in DIFFERENCES {
        if !all().any(|s| s.number == number) {
            complaints.push(format!("there is no statement {number}, and a difference in it"));
        }
    }
    complaints
}

/// The whole document.
pub(super) fn render(outcomes: &Outcomes) -> String {
    let mut text = HEAD.to_owned();
    for (heading, statements) in STATEMENTS {
        let _ = write!(text, "## {heading}\n\n| | statement |");
        COLUMNS.iter().for_each(|column| text.extend([" ", column, " |"]));
        text.push_str("\n|---|---|---|---|---|---|\n");
        for statement in statements {
            let _ = write!(text, "| {} | {} |", statement.number, statement.says);
            for column in COLUMNS {
                let _ = write!(text, " {} |", cell(outcomes, statement.number, column));
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text.push_str("## Differences on purpose\n\n");
    for (number, column, why) in DIFFERENCES {
        let _ = writeln!(text, "- {number}, {column}: {why}");
    }
    text.push_str("\n## Tests\n\nThose without a column are of paged objects, or of parts of them.\n");
    for statement in all().filter(|s| outcomes.of(s.number).next().is_some()) {
        let _ = write!(text, "\n**{}**\n\n", statement.number);
        for (test, columns) in outcomes.of(statement.number) {
            let _ = write!(text, "- `{test}`");
            if test.contains("::") {
                let named: Vec<&str> = COLUMNS.into_iter().filter(|c| columns.contains_key(c)).collect();
                let _ = write!(text, ": {}", named.join(", "));
            }
            text.push('\n');
        }
    }
    text
}

fn cell(outcomes: &Outcomes, number: &str, column: &str) -> &'static str {
    let mut passed = outcomes.of(number).filter_map(|(_, columns)| columns.get(column)).peekable();
    if PENDING.contains(&number) {
        "not yet"
    } else if passed.peek().is_none() {
        "n/a"
    } else if !passed.all(|passed| *passed) {
        "FAILED"
    } else if DIFFERENCES.iter().any(|(n, c, _)| (*n, *c) == (number, column)) {
        "differs"
    } else {
        "pass"
    }
}

fn all() -> impl Iterator<Item = &'static Statement> {
    STATEMENTS.iter().flat_map(|(_, statements)| statements.iter())
}
