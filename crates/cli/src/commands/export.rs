//! `omnimap export`

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use omnimap::{Advice, KeptChanges, MapOptions, Mapping, WorkingCopy};

use super::diff::directory;

/// Write an object of a bucket to a file, with the changes that could not be published.
///
/// What was not changed is taken from the object. If that is another version by now, say whether to take it from there all the
/// same, or to leave it out.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The object's URL.
    source: String,
    /// The file to write; it must not be there.
    output: PathBuf,
    /// The directory where changes are kept.
    #[arg(long, value_name = "DIRECTORY")]
    changes: Option<PathBuf>,
    /// Put the changes over the version that the object has now.
    #[arg(long, conflicts_with = "changes_only")]
    onto_current: bool,
    /// Write the changed bytes alone, where they are in the object; the rest of the file is a hole.
    #[arg(long)]
    changes_only: bool,
}

const COPY_BYTES: u64 = 1 << 20;

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let Some(kept) = WorkingCopy::kept(&self.source, &directory(self.changes.as_ref()))? else {
            bail!(
                "{}: there are no changes that were not published; omnimap cp copies the object",
                self.source
            );
        };
        let base = if self.changes_only { None } else { Some(self.base(&kept)?) };
        let name = || self.output.display().to_string();
        let directory = self.output.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory).with_context(name)?;
        if let Some(base) = base {
            let length = base.len() as u64;
            // Of the version that was changed, what was cut off is not there any more.
            copy(
                &base,
                if self.onto_current { length } else { length.min(kept.base_bytes) },
                file.as_file_mut(),
            )
            .with_context(name)?;
        }
        if !self.onto_current || kept.length != kept.version_bytes {
            file.as_file().set_len(kept.length).with_context(name)?;
        }
        // What was cut off, before the object got longer again, is zeros.
        let zeros = kept.base_bytes..kept.version_bytes.min(kept.length);
        file.seek(SeekFrom::Start(zeros.start))?;
        std::io::copy(
            &mut std::io::repeat(0).take(zeros.end.saturating_sub(zeros.start)),
            file.as_file_mut(),
        )
        .with_context(name)?;
        let mut data = File::open(&kept.data).with_context(|| kept.data.display().to_string())?;
        for range in &kept.ranges {
            data.seek(SeekFrom::Start(range.start))?;
            file.seek(SeekFrom::Start(range.start))?;
            std::io::copy(&mut (&data).take(range.end - range.start), file.as_file_mut())
                .with_context(name)?;
        }
        file.as_file().sync_all().with_context(name)?;
        file.persist_noclobber(&self.output).with_context(name)?;
        Ok(ExitCode::SUCCESS)
    }

    /// The object, if it is the version that was changed, or that does not matter.
    fn base(&self, kept: &KeptChanges) -> Result<Mapping> {
        let store = omnimap::RemoteStore::open(&self.source, &omnimap::RemoteOptions::new())?;
        if store.server_version() != kept.version && !self.onto_current {
            bail!(
                "{}: the changes are to the version {}, and now it is {}; --onto-current puts them over that, \
                 --changes-only writes them alone",
                self.source,
                kept.version,
                store.server_version()
            );
        }
        Ok(MapOptions::new().budget(64 << 20).advice(Advice::Sequential).map(store)?)
    }
}

fn copy(base: &Mapping, length: u64, file: &mut File) -> Result<()> {
    let mut at = 0;
    while at < length {
        let mut bytes = vec![0; COPY_BYTES.min(length - at) as usize];
        base.read_at(at, &mut bytes)?;
        file.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    Ok(())
}
