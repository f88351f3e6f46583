//! `omnimap stat`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use omnimap::store::{FileStore, Version, ZstdStore};
use omnimap::{BackingStore, Format};
use serde_json::json;

use crate::size;

/// Say what a file is, as an object to be mapped.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file.
    source: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// What the file's bytes mean: auto, plain, or zstd.
    #[arg(long, default_value = "auto")]
    format: Format,
}

/// What is told.
struct Facts {
    format: &'static str,
    bytes: u64,
    file_bytes: u64,
    chunks: Option<usize>,
    chunk_bytes: u64,
    direct: bool,
    version: Option<Version>,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let facts = self.look()?;
        let mut output = io::stdout().lock();
        if self.json {
            let value = json!({
                "source": self.source.display().to_string(),
                "format": facts.format,
                "bytes": facts.bytes,
                "file_bytes": facts.file_bytes,
                "chunks": facts.chunks,
                "chunk_bytes": facts.chunk_bytes,
                "page_bytes": omnimap::machine::page_bytes(),
                "direct_io": facts.direct,
                "version": facts.version.map(|v| v.to_string()),
            });
            writeln!(output, "{value:#}")?;
            return Ok(ExitCode::SUCCESS);
        }
        let sized = |bytes| format!("{} ({bytes} bytes)", size::show(bytes));
        let mut line = |name: &str, value: String| writeln!(output, "{name:>10}  {value}");
        line("source", self.source.display().to_string())?;
        line("format", facts.format.to_owned())?;
        line("length", sized(facts.bytes))?;
        if let Some(chunks) = facts.chunks {
            let part = 100.0 * facts.file_bytes as f64 / facts.bytes.max(1) as f64;
            line("packed", format!("{}, {part:.1} %", sized(facts.file_bytes)))?;
            line("chunks", format!("{chunks}, the first of {}", size::show(facts.chunk_bytes)))?;
        }
        line("reads", if facts.direct { "direct".into() } else { "through the kernel's cache".into() })?;
        line("version", facts.version.map_or("not pinned".into(), |v| v.to_string()))?;
        Ok(ExitCode::SUCCESS)
    }

    fn look(&self) -> Result<Facts> {
        let file = Arc::new(FileStore::open(&self.source)?);
        let packed = self.format.detect(&*file)? == Format::Zstd;
        let (direct, file_bytes, version) = (file.is_direct(), file.len(), file.version());
        if !packed {
            let chunk_bytes = 1.min(file_bytes);
            return Ok(Facts {
                format: "plain",
                bytes: file_bytes,
                file_bytes,
                chunks: None,
                chunk_bytes,
                direct,
                version,
            });
        }
        let store = ZstdStore::open(file)?;
        let first = store.chunk_at(0);
        Ok(Facts {
            format: "zstd, seekable",
            bytes: store.len(),
            file_bytes,
            chunks: Some(store.frame_count()),
            chunk_bytes: if store.is_empty() { 0 } else { first.end - first.start },
            direct,
            version,
        })
    }
}
