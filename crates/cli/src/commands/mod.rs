//! One file for each command.

pub(crate) mod cat;
pub(crate) mod copy;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod maps;
pub(crate) mod pack;
pub(crate) mod page_cache;
pub(crate) mod patch;
pub(crate) mod recover;
pub(crate) mod sort;
pub(crate) mod stat;
pub(crate) mod view;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use omnimap::store::DiskTier;
use omnimap::{Format, MapOptions, Mapping};

use crate::size;

/// What is mapped, and with how much memory.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// The file, or the URL of an object (s3, gs, az, http, https): plain, or packed by `omnimap pack` (or another program that
    /// writes seekable zstd).
    source: PathBuf,
    /// The most memory that its bytes take, as 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64MiB")]
    budget: u64,
    /// What the file's bytes mean: auto, plain, or zstd.
    #[arg(long, default_value = "auto")]
    format: Format,
    #[command(flatten)]
    tier: Tier,
}

/// Where what was fetched by URLs is kept.
#[derive(clap::Args)]
pub(crate) struct Tier {
    /// A directory that keeps what was fetched by URLs, for later runs.
    #[arg(long, value_name = "DIRECTORY", env = "OMNIMAP_DISK_TIER")]
    disk_tier: Option<PathBuf>,
    /// The most that the directory takes.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "10GiB", env = "OMNIMAP_DISK_TIER_MAX")]
    disk_tier_max: u64,
}

impl Source {
    fn options(&self) -> Result<MapOptions> {
        let mut options = MapOptions::new();
        options.budget(self.budget).format(self.format);
        self.tier.apply(&mut options)?;
        Ok(options)
    }

    fn map(&self) -> Result<Mapping> {
        Ok(self.options()?.open(&self.source)?)
    }
}

impl Tier {
    fn open(&self) -> Result<Option<Arc<DiskTier>>> {
        let open = |directory| DiskTier::open(directory, self.disk_tier_max);
        Ok(self.disk_tier.as_ref().map(open).transpose()?)
    }

    fn apply(&self, options: &mut MapOptions) -> Result<()> {
        if let Some(tier) = self.open()? {
            options.disk_tier(&tier);
        }
        Ok(())
    }
}
