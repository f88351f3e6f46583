//! The tests that are named by statement, and what became of them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The columns of the table, as tests name them.
pub(super) const COLUMNS: [&str; 4] = ["kernel", "paged", "anonymous", "device"];

/// A run takes as long as the slowest of the tests, on a busy machine.
const RUN_TIME_MAX: Duration = Duration::from_secs(20 * 60);

/// Of each statement, each test; of each test, whether it passed in each column that it has.
#[derive(Default)]
pub(super) struct Outcomes {
    tests: BTreeMap<String, BTreeMap<String, BTreeMap<&'static str, bool>>>,
}

impl Outcomes {
    /// Runs all tests of the workspace.
    pub(super) fn of_run(root: &Path) -> Result<Outcomes> {
        let output = cargo(root, &["--no-fail-fast"])?;
        let mut outcomes = Outcomes::default();
        for line in output.lines() {
            let Some((name, outcome)) = line.strip_prefix("test ").and_then(|l| l.rsplit_once(" ... "))
            else {
                continue;
            };
            outcomes.add(name, outcome == "ok");
        }
        ensure!(outcomes.len() > 0, "no tests were run");
        Ok(outcomes)
    }

    /// Asks which tests there are, and takes it that they pass: whoever asks runs them anyway.
    pub(super) fn of_list(root: &Path) -> Result<Outcomes> {
        let output = cargo(root, &["--", "--list"])?;
        let mut outcomes = Outcomes::default();
        output
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .for_each(|name| outcomes.add(name, true));
        ensure!(outcomes.len() > 0, "no tests were listed");
        Ok(outcomes)
    }

    /// `mmap::m01_what::paged`, or `m01_what`, which is about paged objects.
    fn add(&mut self, name: &str, passed: bool) {
        let parts: Vec<&str> = name.split("::").collect();
        let last = parts.last().copied().unwrap_or_default();
        let named = COLUMNS.into_iter().find(|column| *column == last);
        let (test, column) = match named {
            Some(column) => (&parts[..parts.len() - 1], column),
            None => (&parts[..], "paged"),
        };
        let what = test.last().copied().unwrap_or_default();
        let Some(statement) = statement_of(what) else { return };
        let shown = if named.is_some() { test.join("::") } else { what.to_owned() };
        *self.tests.entry(statement).or_default().entry(shown).or_default().entry(column).or_insert(true) &=
            passed;
    }

    /// The tests of a statement.
    pub(super) fn of(
        &self,
        statement: &str,
    ) -> impl Iterator<Item = (&String, &BTreeMap<&'static str, bool>)> {
        self.tests.get(statement).into_iter().flatten()
    }

    /// The statements that have tests.
    pub(super) fn statements(&self) -> impl Iterator<Item = &String> {
        self.tests.keys()
    }

    /// How many tests there are, in all columns.
    pub(super) fn len(&self) -> usize {
        self.tests.values().flat_map(BTreeMap::values).map(BTreeMap::len).sum()
    }
}

/// `M01` of `m01_what`.
fn statement_of(test: &str) -> Option<String> {
    let (number, _) = test.split_once('_')?;
    let digits = number.strip_prefix(|c: char| c.is_ascii_lowercase())?;
    let good = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    good.then(|| number.to_ascii_uppercase())
}

/// What `cargo test` says on standard output; its standard error goes to ours.
fn cargo(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut child = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--workspace"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test")?;
    let mut pipe = child.stdout.take().context("its output")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + RUN_TIME_MAX;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("the tests were not done within {} s", RUN_TIME_MAX.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    match reader.join() {
        Ok(text) => Ok(text?),
        Err(_) => bail!("the tests' output was not read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_statement_and_column() {
        assert_eq!(statement_of("m01_what").as_deref(), Some("M01"));
        assert_eq!(statement_of("e4_what").as_deref(), Some("E4"));
        for other in ["names_tell", "p256_curve", "m_what", "m01"] {
            assert_eq!(statement_of(other), None, "{other}");
        }
        let mut outcomes = Outcomes::default();
        outcomes.add("mmap::m01_a::kernel", true);
        outcomes.add("mmap::m01_a::device", false);
        outcomes.add("tests::m01_b", true);
        let found: Vec<_> = outcomes.of("M01").collect();
        assert_eq!(found[0], (&"m01_b".to_owned(), &BTreeMap::from([("paged", true)])));
        assert_eq!(found[1].1, &BTreeMap::from([("device", false), ("kernel", true)]));
    }
}
