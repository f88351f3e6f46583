//! The version of an object that was opened, and whether an answer is of it.

use object_store::{GetOptions, ObjectMeta};
use omnimap_store::StoreError;

use crate::upload::Published;

/// What the server said of an object when it was opened.
#[derive(Debug, Clone)]
pub(crate) struct Pinned(ObjectMeta);

impl Pinned {
    pub(crate) fn of(mut meta: ObjectMeta) -> Pinned {
        meta.e_tag = meta.e_tag.filter(|tag| !tag.is_empty());
        Pinned(meta)
    }

    /// The version that was published in the place of this one.
    pub(crate) fn replaced_by(&self, new: Published) -> Pinned {
        // In the text of some answers it is without its quotes.
        let tag = match new.tag.starts_with('"') {
            true => new.tag,
            false => format!("\"{}\"", new.tag),
        };
        Pinned(ObjectMeta { e_tag: Some(tag), version: new.version, size: new.length, ..self.0.clone() })
    }

    /// As the service counts versions, if it does.
    pub(crate) fn generation(&self) -> Option<String> {
        self.0.version.clone()
    }

    pub(crate) fn length(&self) -> u64 {
        self.0.size
    }

    /// The ETag, if equal ones mean equal bytes (RFC 9110, 8.8.3: of weak ones that is not said).
    pub(crate) fn strong_tag(&self) -> Option<&str> {
        self.0.e_tag.as_deref().filter(|tag| !tag.starts_with("W/"))
    }

    /// Seconds since 1970, if the server said when the object was changed.
    fn modified(&self) -> Option<i64> {
        Some(self.0.last_modified.timestamp()).filter(|seconds| *seconds != 0)
    }

    /// Whether anything tells this version from another.
    pub(crate) fn is_version(&self) -> bool {
        self.0.e_tag.is_some() || self.modified().is_some()
    }

    /// As people may see it.
    pub(crate) fn shown(&self) -> String {
        match (&self.0.e_tag, self.modified()) {
            (Some(tag), _) => format!("ETag {tag}"),
            (None, Some(_)) => format!("Last-Modified {}", self.0.last_modified.to_rfc2822()),
            (None, None) => "of no version".to_owned(),
        }
    }

    /// The same request, to be answered only if the object is this version still.
    pub(crate) fn condition(&self, options: GetOptions) -> GetOptions {
        match self.strong_tag() {
            Some(tag) => options.with_if_match(Some(tag)),
            // With a weak one no If-Match ever holds.
            None => options.with_if_unmodified_since(self.modified().map(|_| self.0.last_modified)),
        }
    }

    /// Servers need not know conditions: each answer is looked at.
    pub(crate) fn check(&self, now: &Pinned) -> Result<(), StoreError> {
        let same_bytes = match self.strong_tag() {
            Some(_) => self.0.e_tag == now.0.e_tag,
            None => self.0.e_tag == now.0.e_tag && self.modified() == now.modified(),
        };
        let how = match (self.length() == now.length(), same_bytes) {
            (true, true) => return Ok(()),
            (true, false) => format!("it was {}, and is {}", self.shown(), now.shown()),
            (false, _) => format!("it had {} bytes, and has {}", self.length(), now.length()),
        };
        Err(StoreError::Changed { how })
    }
}
