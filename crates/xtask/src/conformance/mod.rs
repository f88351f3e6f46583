//! `cargo xtask conformance`: from the tests, the table of statements in docs/conformance.md.

mod results;
mod statements;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use results::Outcomes;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only look whether the table lists the tests that there are, without running them.
    #[arg(long)]
    check: bool,
}

const TABLE: &str = "docs/conformance.md";

impl Arguments {
    pub(crate) fn run(&self, root: &Path) -> Result<()> {
        let outcomes = if self.check { Outcomes::of_list(root) } else { Outcomes::of_run(root) }?;
        let complaints = table::complaints(&outcomes);
        let text = table::render(&outcomes);
        let path = root.join(TABLE);
        if self.check {
            let committed = fs::read_to_string(&path).context(TABLE)?;
            ensure!(committed == text, "{TABLE} is not up to date: cargo xtask conformance makes it anew");
        } else {
            fs::write(&path, text).context(TABLE)?;
        }
        if !complaints.is_empty() {
            bail!("{}", complaints.join("\n"));
        }
        println!("{TABLE}: {} tests", outcomes.len());
        Ok(())
    }
}
