//! `omnimap cat`

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use omnimap::{Advice, BackingStore};

use super::Source;
use crate::size;

/// Write the bytes of a file, or of an object, unpacked, to standard output.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Where to begin.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    offset: u64,
    /// How many bytes, or what is left of the file; up to the end, unless it is given.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    length: Option<u64>,
}

/// Bytes copied at a time: they stay in the processor's cache on their way.
const COPY_BYTES: usize = 256 << 10;

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut options = self.source.options()?;
        options.advice(Advice::Sequential).offset(self.offset);
        let store = options.open_store(&self.source.source)?;
        let Some(left) = store.len().checked_sub(self.offset) else {
            bail!("{}: offset {} is beyond its {} bytes", store.name(), self.offset, store.len());
        };
        options.length(self.length.unwrap_or(left).min(left));
        let mapping = options.map_shared(store)?;
        let mut output = io::stdout().lock();
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = 0;
        while at < mapping.len() as u64 {
            let count = buffer.len().min(mapping.len() - at as usize);
            mapping.read_at(at, &mut buffer[..count])?;
            output.write_all(&buffer[..count])?;
            at += count as u64;
        }
        output.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}
