//! `omnimap recover`

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use omnimap::store::journal::{self, JournalOptions, Recovered};
use omnimap::store::{FileStore, Verified};
use serde_json::json;

/// Finish what a crash has left half written: bring the transaction in a file's journal to the file.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file.
    file: PathBuf,
    /// Its journal, if that is not beside it as FILE.omnimap-journal.
    #[arg(long, value_name = "PATH")]
    journal: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let recovered = self.recover()?;
        let mut output = io::stdout().lock();
        if self.json {
            let facts =
                recovered.map(|r| json!({ "transaction": r.sequence, "blocks": r.blocks, "bytes": r.bytes }));
            let value = json!({ "file": self.file.display().to_string(), "recovered": facts });
            writeln!(output, "{value:#}")?;
            return Ok(ExitCode::SUCCESS);
        }
        match recovered {
            None => writeln!(output, "nothing to recover")?,
            Some(Recovered { sequence, blocks, bytes }) => {
                writeln!(output, "applied transaction {sequence}: {blocks} blocks, {bytes} bytes")?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn recover(&self) -> Result<Option<Recovered>> {
        let path = self.journal.clone().unwrap_or_else(|| journal::path_for(&self.file));
        if self.journal.is_none() && is_missing(&path) {
            // It says so if the file is not there either; and nothing has to be writable for nothing to be done.
            FileStore::open(&self.file)?;
            return Ok(None);
        }
        // A path that somebody has named and that is not there is a mistake, and no journal to be made.
        FileStore::open(&path)?;
        let object = Arc::new(Verified::new(Arc::new(FileStore::open_writable(&self.file)?)));
        let journaled = journal::open_file(object, &self.file, Some(&path), JournalOptions::default())?;
        Ok(journaled.recovered())
    }
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}
