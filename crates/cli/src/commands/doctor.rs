//! `omnimap doctor`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

/// Say what this machine allows, and what to do about what it does not.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The directory in which direct I/O is tried.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let probe = omnimap::machine::probe(&self.directory);
        let mut output = io::stdout().lock();
        if self.json {
            let findings: Vec<_> = probe
                .findings
                .iter()
                .map(|f| json!({ "name": f.name, "good": f.good, "found": f.found, "remedy": f.remedy }))
                .collect();
            writeln!(
                output,
                "{:#}",
                json!({ "usable": probe.usable(), "fault_mode": probe.fault_mode.map(|mode| mode.to_string()), "findings": findings })
            )?;
        } else {
            for finding in &probe.findings {
                let mark = if finding.good { "ok" } else { "NO" };
                writeln!(output, "{mark}  {:28} {}", finding.name, finding.found)?;
                if let Some(remedy) = &finding.remedy {
                    writeln!(output, "    {:28} → {remedy}", "")?;
                }
            }
            writeln!(output)?;
            let verdict = if probe.usable() { "Mappings work here." } else { "Mappings do not work here." };
            writeln!(output, "{verdict}")?;
        }
        Ok(if probe.usable() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
