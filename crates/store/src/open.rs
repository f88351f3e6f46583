//! From a path to a store.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::journal::refuse_half_written;
use crate::{BackingStore, FileStore, Result, StoreError, ZstdStore};

/// What a file's bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// Seekable zstd if the file begins as a zstd file does or is named as one; else the bytes as they are.
    #[default]
    Auto,
    /// The bytes as they are.
    Plain,
    /// Seekable zstd.
    Zstd,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Format::Auto),
            "plain" => Ok(Format::Plain),
            "zstd" => Ok(Format::Zstd),
            _ => Err(format!("no format {text:?}: auto, plain or zstd")),
        }
    }
}

impl Format {
    /// What an object is: [`Auto`](Self::Auto) looks at its first bytes and its name, the others are what they say.
    ///
    /// # Errors
    /// If the bytes cannot be read.
    pub fn detect(self, object: &dyn BackingStore) -> Result<Format> {
        let named_zstd = || [".zst", ".zstd"].iter().any(|end| object.name().ends_with(end));
        Ok(match self {
            // A damaged zstd file must not pass for a plain one.
            Format::Auto if named_zstd() || ZstdStore::is_zstd(object)? => Format::Zstd,
            Format::Auto => Format::Plain,
            told => told,
        })
    }
}

/// Opens a local file for reading, as what its first bytes and its name say that it is.
///
/// # Errors
/// Those of [`FileStore::open`] and [`ZstdStore::open`]. A zstd file without a seek table is an error, not an object
/// of its packed bytes; ask for [`Format::Plain`] to have those. A file that a crash has left half written, with a
/// committed transaction in the journal beside it, is an error until `omnimap recover` (or
/// [`journal::open_file`](crate::journal::open_file)) has finished it.
pub fn open(path: impl AsRef<Path>, format: Format) -> Result<Arc<dyn BackingStore>> {
    let path = path.as_ref();
    let file = Arc::new(FileStore::open_buffered(path)?);
    refuse_half_written(path)?;
    let format = detect_and_read_directly(&file, format).map_err(|error| named(error, file.name()))?;
    unpack(file, format)
}

/// An object as what its first bytes and its name say that it is, wherever it is kept.
///
/// # Errors
/// If its bytes cannot be read; and those of [`ZstdStore::open`].
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use omnimap_store::{BackingStore, Format, MemoryStore, pack, unpack};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut packed = Vec::new();
/// pack(&[7; 100_000][..], &mut packed, &Default::default(), |_| ())?;
/// let store = unpack(Arc::new(MemoryStore::new("packed", packed)), Format::Auto)?;
/// assert_eq!(store.len(), 100_000);
/// # Ok(())
/// # }
/// ```
pub fn unpack(object: Arc<dyn BackingStore>, format: Format) -> Result<Arc<dyn BackingStore>> {
    let name = object.name().to_owned();
    let unpacked = || -> Result<Arc<dyn BackingStore>> {
        match format.detect(&*object)? {
            Format::Zstd => Ok(Arc::new(ZstdStore::open(object)?)),
            _ => Ok(object),
        }
    };
    unpacked().map_err(|error| named(error, &name))
}

/// An error that says what it is about.
fn named(error: StoreError, name: &str) -> StoreError {
    match error {
        named @ (StoreError::Open { .. } | StoreError::Unusable { .. }) => named,
        error => StoreError::Open { name: name.to_owned(), source: std::io::Error::other(error) },
    }
}

/// Looks at the first bytes while reads are buffered: they are often in the kernel's page cache, and a direct read would go
/// to the device for them.
fn detect_and_read_directly(file: &FileStore, format: Format) -> Result<Format> {
    let format = format.detect(file)?;
    file.read_directly();
    Ok(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_direct_whether_the_format_was_told_or_found() {
        // Not in a temporary directory, which may be memory, where nothing is direct.
        let beside_the_test = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(beside_the_test.parent().unwrap()).unwrap();
        std::fs::write(&file, vec![7; 5000]).unwrap();
        let opened = FileStore::open(&file).unwrap();
        for format in [Format::Auto, Format::Plain] {
            let buffered = FileStore::open_buffered(file.path()).unwrap();
            assert!(!buffered.is_direct());
            assert_eq!(detect_and_read_directly(&buffered, format).unwrap(), Format::Plain);
            assert_eq!(buffered.is_direct(), opened.is_direct());
            let mut bytes = [0; 5000];
            assert_eq!(buffered.read_at(0, &mut bytes).unwrap(), 5000);
            assert_eq!(bytes, [7; 5000]);
        }
    }
}
