//! One file for each command.

pub(crate) mod cat;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod maps;
pub(crate) mod pack;
pub(crate) mod page_cache;
pub(crate) mod patch;
pub(crate) mod recover;
pub(crate) mod sort;
pub(crate) mod stat;
pub(crate) mod view;

use std::path::PathBuf;

use omnimap::{Format, MapOptions, Mapping};

use crate::size;

/// What is mapped, and with how much memory.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// The file to map: plain, or packed by `omnimap pack` (or another program that writes seekable zstd).
    source: PathBuf,
    /// The most memory that its bytes take, as 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64MiB")]
    budget: u64,
    /// What the file's bytes mean: auto, plain, or zstd.
    #[arg(long, default_value = "auto")]
    format: Format,
}

impl Source {
    fn options(&self) -> MapOptions {
        let mut options = MapOptions::new();
        options.budget(self.budget).format(self.format);
        options
    }

    fn map(&self) -> omnimap::Result<Mapping> {
        self.options().open(&self.source)
    }
}
