//! From a path or a URL to a store.

use std::borrow::Cow;
use std::path::Path;
#[cfg(feature = "remote")]
use std::path::PathBuf;
use std::sync::Arc;

use omnimap_core::{Error, Result};
use omnimap_store::{BackingStore, Format, StoreError};
#[cfg(feature = "remote")]
use omnimap_store::{DiskTier, unpack};
#[cfg(feature = "remote")]
use omnimap_store_object::{RemoteOptions, RemoteStore, WorkingCopy};

use crate::MapOptions;

impl MapOptions {
    /// How objects of buckets and web servers are asked for.
    #[cfg(feature = "remote")]
    pub fn remote(&mut self, options: RemoteOptions) -> &mut Self {
        self.remote = options;
        self
    }

    /// Keeps what was fetched from buckets and web servers in a directory, for later runs and other processes; off by default.
    ///
    /// # Example
    /// ```no_run
    /// use omnimap::MapOptions;
    /// use omnimap::store::DiskTier;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tier = DiskTier::open("/var/cache/index", 10 << 30)?;
    /// let mapping = MapOptions::new().disk_tier(&tier).open("s3://bucket/index")?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "remote")]
    pub fn disk_tier(&mut self, tier: &Arc<DiskTier>) -> &mut Self {
        self.disk_tier = Some(tier.clone());
        self
    }

    /// Opens a local file, or what a URL names, as a store to be read: what [`open`](Self::open) maps.
    ///
    /// | URL | what it names |
    /// |---|---|
    /// | `s3://bucket/key` | an object of S3, or of what speaks its protocol (`AWS_ENDPOINT_URL`) |
    /// | `gs://bucket/key` | an object of Google Cloud Storage |
    /// | `az://container/key`, `abfs://…` | an object of Azure Blob Storage |
    /// | `http://…`, `https://…` | what a web server gives, a signed URL too |
    /// | `file:///path` | a local file |
    ///
    /// Before each of them may stand its [format](Self::format), as in `zstd+s3://bucket/key`; without, it is found out as
    /// that of a file. An object is held to the version that was opened ([`RemoteStore`]).
    ///
    /// # Errors
    /// If it cannot be opened or is of no kind that can be mapped. [`StoreError::Unusable`] for a URL of another kind.
    ///
    /// # Example
    /// ```
    /// use omnimap::MapOptions;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = tempfile::NamedTempFile::new()?;
    /// # std::fs::write(file.path(), b"abc")?;
    /// let url = format!("file://{}", file.path().display());
    /// assert_eq!(MapOptions::new().open_store(url)?.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_store(&self, source: impl AsRef<Path>) -> Result<Arc<dyn BackingStore>> {
        let source = source.as_ref();
        let Some((format, url)) = as_url(source) else {
            return Ok(omnimap_store::open(source, self.format)?);
        };
        let format = format.unwrap_or(self.format);
        match local(url)? {
            Some(path) => Ok(omnimap_store::open(path, format)?),
            None => self.open_remote(url, format),
        }
    }

    /// Opens what a path or a URL names, to be written.
    pub(crate) fn open_to_write<'a>(&self, source: &'a Path) -> Result<ToWrite<'a>> {
        let Some((format, url)) = as_url(source) else { return Ok(ToWrite::File(source.into())) };
        if format == Some(Format::Zstd) {
            let reason = "packed objects cannot be stored to; map it private";
            return Err(Error::NotAllowed { object: url.into(), reason });
        }
        match local(url)? {
            Some(path) => Ok(ToWrite::File(path.into())),
            None => self.open_working_copy(url),
        }
    }

    #[cfg(feature = "remote")]
    fn open_working_copy<'a>(&self, url: &str) -> Result<ToWrite<'a>> {
        Ok(ToWrite::Object(Arc::new(WorkingCopy::open(url, &self.remote, &self.changes_directory())?)))
    }

    #[cfg(not(feature = "remote"))]
    fn open_working_copy<'a>(&self, url: &str) -> Result<ToWrite<'a>> {
        Err(not_built_in(url))
    }

    /// Where what is stored to objects of buckets is kept until a sync has published it; the default is `omnimap/changes` below
    /// `$XDG_STATE_HOME`, or `~/.local/state`.
    ///
    /// A sync of such a mapping is all or nothing: it uploads a new version, under the condition that the object is still the one
    /// that was opened. Else it is an error, and what was stored stays here ([`WorkingCopy`]).
    ///
    /// # Example
    /// ```no_run
    /// use omnimap::MapOptions;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut mapping = MapOptions::new().changes("/var/lib/index/changes").open_mut("s3://bucket/index")?;
    /// mapping[100] = 7;
    /// mapping.sync()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "remote")]
    pub fn changes(&mut self, directory: impl Into<PathBuf>) -> &mut Self {
        self.changes = Some(directory.into());
        self
    }

    /// The directory that [`changes`](Self::changes) tells, or its default.
    #[cfg(feature = "remote")]
    pub fn changes_directory(&self) -> PathBuf {
        let state = || match std::env::var_os("XDG_STATE_HOME") {
            Some(state) => PathBuf::from(state),
            None => std::env::home_dir().unwrap_or_else(std::env::temp_dir).join(".local/state"),
        };
        self.changes.clone().unwrap_or_else(|| state().join("omnimap/changes"))
    }

    #[cfg(feature = "remote")]
    fn open_remote(&self, url: &str, format: Format) -> Result<Arc<dyn BackingStore>> {
        let Some(tier) = &self.disk_tier else {
            return Ok(unpack(Arc::new(RemoteStore::open(url, &self.remote)?), format)?);
        };
        // What an object begins with is in the tier, most likely.
        let mut options = self.remote.clone();
        options.head_bytes(0);
        let store = Arc::new(RemoteStore::open(url, &options)?);
        Ok(unpack(tier.before(store), format)?)
    }

    #[cfg(not(feature = "remote"))]
    fn open_remote(&self, url: &str, _format: Format) -> Result<Arc<dyn BackingStore>> {
        Err(not_built_in(url))
    }
}

#[cfg(not(feature = "remote"))]
fn not_built_in(url: &str) -> Error {
    let reason = "URLs need the feature \"remote\" of the crate omnimap".to_owned();
    StoreError::Unusable { name: url.to_owned(), reason }.into()
}

/// What is to be written.
pub(crate) enum ToWrite<'a> {
    File(Cow<'a, Path>),
    #[cfg_attr(not(feature = "remote"), expect(dead_code, reason = "only URLs name what is no file"))]
    Object(Arc<dyn BackingStore>),
}

/// The URL that a source names, and the format that stands before it; nothing, if the source is a path.
///
/// # Example
/// ```
/// use std::path::Path;
/// use omnimap::{Format, as_url};
///
/// assert_eq!(as_url(Path::new("zstd+s3://bucket/key")), Some((Some(Format::Zstd), "s3://bucket/key")));
/// assert_eq!(as_url(Path::new("directory/file")), None);
/// ```
pub fn as_url(source: &Path) -> Option<(Option<Format>, &str)> {
    let text = source.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    let is_scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    let prefixes = [("zstd+", Format::Zstd), ("plain+", Format::Plain)];
    let prefixed =
        prefixes.into_iter().find_map(|(prefix, format)| Some((Some(format), text.strip_prefix(prefix)?)));
    is_scheme(scheme).then(|| prefixed.unwrap_or((None, text)))
}

#[cfg(feature = "remote")]
fn local(url: &str) -> Result<Option<std::path::PathBuf>, StoreError> {
    omnimap_store_object::local_path(url)
}

/// Without the rules for what is encoded in a URL.
#[cfg(not(feature = "remote"))]
fn local(url: &str) -> Result<Option<std::path::PathBuf>, StoreError> {
    Ok(url.strip_prefix("file://").map(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        let url = |text: &'static str| as_url(Path::new(text));
        assert_eq!(url("s3://bucket/key"), Some((None, "s3://bucket/key")));
        assert_eq!(url("zstd+s3://bucket/key"), Some((Some(Format::Zstd), "s3://bucket/key")));
        assert_eq!(url("plain+file:///x.zst"), Some((Some(Format::Plain), "file:///x.zst")));
        for path in ["/tmp/file", "C:/x", "a b://c", "://x", "./s3:/bucket"] {
            assert_eq!(url(path), None, "{path}");
        }
    }
}
