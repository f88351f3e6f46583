//! `omnimap diff`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use omnimap::{MapOptions, WorkingCopy};
use serde_json::json;

use crate::size;

/// Say what was stored to an object of a bucket and could not be published, because somebody else replaced the object.
///
/// The exit code is 1 if there is something.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The object's URL.
    source: String,
    /// The directory where changes are kept.
    #[arg(long, value_name = "DIRECTORY")]
    changes: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Forget the changes.
    #[arg(long)]
    discard: bool,
}

/// The directory that was told, or the one that mappings use.
pub(super) fn directory(told: Option<&PathBuf>) -> PathBuf {
    told.cloned().unwrap_or_else(|| MapOptions::new().changes_directory())
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let directory = directory(self.changes.as_ref());
        let kept = WorkingCopy::kept(&self.source, &directory)?;
        let mut output = io::stdout().lock();
        if self.json {
            let ranges =
                |k: &omnimap::KeptChanges| k.ranges.iter().map(|r| [r.start, r.end]).collect::<Vec<_>>();
            let value = kept.as_ref().map(|kept| {
                json!({
                    "source": kept.name,
                    "version": kept.version,
                    "version_bytes": kept.version_bytes,
                    "bytes": kept.length,
                    "zeros_from": kept.base_bytes,
                    "changed": ranges(kept),
                })
            });
            writeln!(output, "{:#}", json!(value))?;
        } else if let Some(kept) = &kept {
            writeln!(output, "{}, changes to the version {}:", kept.name, kept.version)?;
            if kept.length != kept.version_bytes {
                writeln!(output, "{:>16}  bytes, and it had {}", kept.length, kept.version_bytes)?;
            }
            if kept.base_bytes < kept.version_bytes.min(kept.length) {
                writeln!(output, "{:>16}  zeros from there on, but for what follows", kept.base_bytes)?;
            }
            for range in &kept.ranges {
                writeln!(output, "{:>16}  {}", range.start, size::show(range.end - range.start))?;
            }
        }
        if kept.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        if self.discard {
            WorkingCopy::discard(&self.source, &directory)?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }
}
