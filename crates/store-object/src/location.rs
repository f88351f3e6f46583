//! URLs: what they name, and what of them may be shown.

use std::path::PathBuf;

use object_store::path::Path;
use omnimap_store::{Result, StoreError};
use url::Url;

/// Which service keeps an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    S3,
    Google,
    Azure,
    Web,
}

/// Where an object is.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    pub(crate) service: Service,
    pub(crate) url: Url,
    /// Within the bucket, or the web server.
    pub(crate) path: Path,
    /// As people may see it: without a password or a signature.
    pub(crate) name: String,
}

/// The path that a `file://` URL names; nothing, for other texts.
///
/// # Errors
/// If it names a file of another machine.
pub fn local_path(text: &str) -> Result<Option<PathBuf>> {
    let Some(("file", _)) = text.split_once("://") else { return Ok(None) };
    let url = parse(text)?;
    match url.to_file_path() {
        Ok(path) => Ok(Some(path)),
        Err(()) => Err(unusable(text, "a file URL of this machine has three slashes, as file:///etc/hosts")),
    }
}

impl Location {
    pub(crate) fn parse(text: &str) -> Result<Location> {
        let url = parse(text)?;
        let name = shown(&url);
        let host = url.host_str().unwrap_or_default();
        let service = match url.scheme() {
            _ if host.is_empty() => return Err(unusable(&name, "the URL has no bucket or host")),
            "s3" | "s3a" => Service::S3,
            "gs" => Service::Google,
            "az" | "azure" | "abfs" | "abfss" | "adl" => Service::Azure,
            "http" | "https" => Service::Web,
            _ => {
                let known = "not a URL that can be mapped: s3, gs, az, http, https and file can";
                return Err(unusable(&name, known));
            }
        };
        if service != Service::Web && url.query().is_some() {
            return Err(unusable(&name, "a ? of a key is written %3F in a URL, and a # %23"));
        }
        let path = Path::from_url_path(url.path())
            .map_err(|error| unusable(&name, &format!("a key that cannot be asked for: {error}")))?;
        if path.as_ref().is_empty() && service != Service::Web {
            return Err(unusable(&name, "the URL names a bucket and no object of it"));
        }
        Ok(Location { service, url, path, name })
    }
}

fn parse(text: &str) -> Result<Url> {
    Url::parse(text).map_err(|error| unusable(text, &format!("no URL: {error}")))
}

/// Signatures stand in the query, passwords before the host.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = shown.set_password(None);
    if shown.query().is_some() {
        shown.set_query(Some("…"));
    }
    shown.set_fragment(None);
    shown.to_string().replace("?%E2%80%A6", "?…")
}

pub(crate) fn unusable(name: &str, reason: &str) -> StoreError {
    StoreError::Unusable { name: name.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_not_shown() {
        let signed = Location::parse("https://me:word@host/a/b.bin?X-Amz-Signature=abc#part").unwrap();
        assert_eq!(signed.name, "https://me@host/a/b.bin?…");
        assert_eq!(signed.path.as_ref(), "a/b.bin");
    }

    #[test]
    fn urls_that_name_no_object_say_so() {
        for (text, reason) in [
            ("s3://bucket", "names a bucket and no object"),
            ("s3://bucket/", "names a bucket and no object"),
            ("s3:///key", "no bucket or host"),
            ("s3://bucket/a?b", "%3F"),
            ("ftp://host/file", "s3, gs, az, http, https and file"),
        ] {
            let error = Location::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn keys_are_what_the_url_encodes() {
        let location = Location::parse("s3://bucket/a%20b/%C3%BC%23").unwrap();
        assert_eq!((location.service, location.path.as_ref()), (Service::S3, "a b/ü#"));
    }

    #[test]
    fn file_urls_are_paths() {
        assert_eq!(local_path("file:///tmp/a%20b").unwrap(), Some("/tmp/a b".into()));
        assert_eq!(local_path("s3://bucket/key").unwrap(), None);
        assert!(local_path("file://elsewhere/tmp").unwrap_err().to_string().contains("three slashes"));
    }
}
