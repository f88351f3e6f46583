//! `omnimap cp`
//!
//! A download goes to a file beside its destination, which is given its name when all is there. How far it is durable stands in a
//! second file, with the version of the source, so that the next try goes on from there:
//!
//! ```text
//! .NAME.omnimap-part      the bytes
//! .NAME.omnimap-part.of   the source's name, version and length, and how many bytes are durable
//! ```
//! What a service has of an upload is noted by the library.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use omnimap::store::journal;
use omnimap::{Advice, BackingStore, Format, MapOptions, RemoteOptions, as_url, remote};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::Tier;
use crate::{progress, size};

/// Copy a file, or an object that a URL names, to a file or an object.
///
/// A copy that was interrupted goes on where it was when the same command is given again; to a web server it begins anew. What a
/// bucket has of an upload that nobody ends costs its owner money, unless a rule of the bucket ends it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file or the URL to copy.
    source: PathBuf,
    /// The file, the directory or the URL to copy to; what is there is replaced when all of the copy is.
    destination: PathBuf,
    /// The most memory that the bytes of a source take on their way to a file, as 64MiB; those to a bucket take 64 MiB, or one part
    /// if that is longer.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64MiB")]
    budget: u64,
    /// What the source's bytes mean: plain copies them as they are, zstd unpacks them, auto finds out.
    #[arg(long, default_value = "plain")]
    format: Format,
    #[command(flatten)]
    tier: Tier,
}

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// Bytes after which what was copied is made durable, and noted.
const NOTED_BYTES: u64 = 64 << 20;

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut options = MapOptions::new();
        options.budget(self.budget).format(self.format).advice(Advice::Sequential);
        self.tier.apply(&mut options)?;
        let store = options.open_store(&self.source)?;
        let local = local_path(&self.source)?;
        let name = match &local {
            Some(path) => path.file_name().map(OsStr::to_owned),
            None => name_in_url(&self.source).map(Into::into),
        };
        let Some((_, url)) = as_url(&self.destination) else {
            download(&options, store, &in_directory(self.destination.clone(), name)?)?;
            return Ok(ExitCode::SUCCESS);
        };
        match remote::local_path(url)? {
            Some(path) => download(&options, store, &in_directory(path, name)?)?,
            None if url.ends_with('/') => {
                let name = name.and_then(|name| name.into_string().ok());
                let name = name.context("the source has no name: say that of the object")?;
                // That of a URL is encoded already.
                let key = if local.is_some() { encoded(&name) } else { name };
                upload(&options, store, &format!("{url}{key}"))?;
            }
            None => upload(&options, store, url)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The path of a source that is a file of this machine.
fn local_path(source: &Path) -> Result<Option<PathBuf>> {
    match as_url(source) {
        Some((_, url)) => Ok(remote::local_path(url)?),
        None => Ok(Some(source.to_owned())),
    }
}

/// The last part of a URL's path, as it is written there.
fn name_in_url(source: &Path) -> Option<&str> {
    let text = source.to_str()?.split(['?', '#']).next()?;
    text.rsplit('/').next().filter(|name| !name.is_empty())
}

/// A file's name as a URL has it: without what would end it there, or stand for another letter.
fn encoded(name: &str) -> String {
    const ENDS: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#');
    utf8_percent_encode(name, ENDS).to_string()
}

fn in_directory(path: PathBuf, name: Option<OsString>) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path);
    }
    let name = name.with_context(|| format!("{} is a directory: say the file's name", path.display()))?;
    Ok(path.join(name))
}

fn upload(options: &MapOptions, store: Arc<dyn BackingStore>, url: &str) -> Result<()> {
    let bar = progress::bytes("copying", Some(store.len()));
    let told = bar.clone();
    let notes = options.changes_directory().with_file_name("uploads");
    remote::put_resuming(url, &RemoteOptions::new(), store, &notes, move |bytes| told.set_position(bytes))?;
    bar.finish_and_clear();
    Ok(())
}

fn download(options: &MapOptions, store: Arc<dyn BackingStore>, destination: &Path) -> Result<()> {
    if destination.exists() && !destination.is_file() {
        bail!("{}: is no file; name a file or a directory", destination.display());
    }
    // What its journal holds would be applied over what is copied.
    journal::refuse_half_written(destination)?;
    let name =
        destination.file_name().with_context(|| format!("{}: names no file", destination.display()))?;
    let part = destination.with_file_name(format!(".{}.omnimap-part", name.to_string_lossy()));
    let note = destination.with_file_name(format!(".{}.omnimap-part.of", name.to_string_lossy()));
    let length = store.len();
    // Of a source that names no version, nobody knows whether it is the same.
    let of = store.version().map(|version| format!("{}\n{version}\n{length}\n", store.name()));
    let begun = || {
        let text = fs::read_to_string(&note).ok()?;
        text.strip_prefix(of.as_deref()?)?.trim().parse::<u64>().ok().filter(|done| *done <= length)
    };
    let context = || part.display().to_string();
    let file = File::options().write(true).create(true).truncate(false).open(&part).with_context(context)?;
    if file.try_lock().is_err() || !is_at(&file, &part) {
        bail!("{}: another omnimap cp is writing it", destination.display());
    }
    let there = file.metadata().with_context(context)?.len();
    let mut done = begun().filter(|done| *done <= there).unwrap_or(0);
    if done == 0 && note.exists() {
        // It is about other bytes than those that come now.
        fs::remove_file(&note).with_context(|| note.display().to_string())?;
    }
    file.set_len(done).with_context(context)?;
    let bar = progress::bytes("copying", Some(length));
    let mapping = options.map_shared(store)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut noted = done;
    while done < length {
        let count = buffer.len().min((length - done) as usize);
        mapping.read_at(done, &mut buffer[..count])?;
        file.write_all_at(&buffer[..count], done).with_context(context)?;
        done += count as u64;
        bar.set_position(done);
        if let Some(of) = of.as_ref().filter(|_| done - noted >= NOTED_BYTES) {
            file.sync_data().with_context(context)?;
            replace(&note, &format!("{of}{done}\n"))?;
            noted = done;
        }
    }
    file.sync_all().with_context(context)?;
    let _ = fs::remove_file(&note);
    fs::rename(&part, destination).with_context(|| destination.display().to_string())?;
    bar.finish_and_clear();
    Ok(())
}

/// Whether an open file is the one of a name: another copy may have given it another meanwhile.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |meta: &fs::Metadata| (meta.dev(), meta.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(open), Ok(named)) if id(&open) == id(&named))
}

/// A file that has the old text or the new one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(directory).with_context(|| path.display().to_string())?;
    new.write_all(text.as_bytes())?;
    new.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn a_files_name_is_one_part_of_a_url() {
        assert_eq!(encoded("50%25?#2.txt"), "50%2525%3F%232.txt");
    }
}
