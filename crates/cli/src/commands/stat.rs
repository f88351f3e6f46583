//! `omnimap stat`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use omnimap::store::{FileStore, ZstdStore};
use omnimap::{BackingStore, Format, RemoteOptions, RemoteStore, as_url};
use serde_json::json;

use super::Tier;
use crate::size;

/// Say what a file, or an object that a URL names, is as an object to be mapped.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file, or the URL of an object.
    source: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// What the file's bytes mean: auto, plain, or zstd.
    #[arg(long, default_value = "auto")]
    format: Format,
    #[command(flatten)]
    tier: Tier,
}

/// What is told.
struct Facts {
    format: &'static str,
    bytes: u64,
    file_bytes: u64,
    chunks: Option<usize>,
    chunk_bytes: u64,
    /// Of a file: whether reads go past the kernel's cache.
    direct: Option<bool>,
    version: Option<String>,
    /// Of an object: bytes of it that are in the disk tier, if there is one.
    kept_bytes: Option<u64>,
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
                "version": facts.version,
                "kept_bytes": facts.kept_bytes,
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
        line(
            "reads",
            match facts.direct {
                Some(true) => "direct".into(),
                Some(false) => "through the kernel's cache".into(),
                None => "requests for ranges".into(),
            },
        )?;
        if let Some(kept) = facts.kept_bytes {
            let part = 100.0 * kept as f64 / facts.file_bytes.max(1) as f64;
            line("kept", format!("{}, {part:.1} %", sized(kept)))?;
        }
        line("version", facts.version.unwrap_or_else(|| "not pinned".into()))?;
        Ok(ExitCode::SUCCESS)
    }

    fn look(&self) -> Result<Facts> {
        let (told, url) = as_url(&self.source).unzip();
        let local = url.map(omnimap::remote::local_path).transpose()?.flatten();
        let (object, direct, version): (Arc<dyn BackingStore>, _, _) = match (url, local) {
            (Some(url), None) => {
                let object = RemoteStore::open(url, &RemoteOptions::new())?;
                let version = Some(object.server_version());
                (Arc::new(object), None, version)
            }
            (_, local) => {
                let file = FileStore::open(local.as_ref().unwrap_or(&self.source))?;
                let (direct, version) = (file.is_direct(), file.version().map(|v| v.to_string()));
                (Arc::new(file), Some(direct), version)
            }
        };
        let tier = if direct.is_none() { self.tier.open()? } else { None };
        let file_bytes = object.len();
        let facts = Facts {
            format: "plain",
            bytes: file_bytes,
            file_bytes,
            chunks: None,
            chunk_bytes: 1.min(file_bytes),
            direct,
            version,
            kept_bytes: tier.map(|tier| tier.bytes_kept(&object)),
        };
        if told.flatten().unwrap_or(self.format).detect(&*object)? != Format::Zstd {
            return Ok(facts);
        }
        let store = ZstdStore::open(object)?;
        let first = store.chunk_at(0);
        Ok(Facts {
            format: "zstd, seekable",
            bytes: store.len(),
            chunks: Some(store.frame_count()),
            chunk_bytes: if store.is_empty() { 0 } else { first.end - first.start },
            ..facts
        })
    }
}
