//! What is known of an upload in parts that may be interrupted: a text file, to which a line is added for each part.
//!
//! ```text
//! upload ID
//! the object, what is uploaded, and the version, length and part size of that
//! NUMBER ID            of each part that the service has
//! ```
//! The lines of parts need not be durable: a part whose line is lost is sent again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use object_store::multipart::PartId;

/// The file, which nobody else may have open.
pub(crate) struct UploadNote {
    path: PathBuf,
    file: File,
    of: Option<String>,
    /// Bytes that are whole lines.
    length: u64,
}

/// What a file tells.
pub(crate) struct UnderWay {
    pub(crate) id: String,
    pub(crate) parts: BTreeMap<usize, PartId>,
    /// Whether it is the upload of these bytes, and not of others to the same place.
    pub(crate) is_this: bool,
}

impl UploadNote {
    /// Opens the note of what is uploaded to one place; `of` tells all that must be the same for an upload to go on, if it can.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if another process is at it.
    pub(crate) fn open(path: PathBuf, of: Option<&str>) -> io::Result<(UploadNote, Option<UnderWay>)> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut file = loop {
            let mut options = File::options();
            let file = options.read(true).append(true).create(true).mode(0o600).open(&path)?;
            file.try_lock()?;
            // Another may have ended its upload, and with it the file, before it was locked here.
            let own = file.metadata()?;
            let named = fs::metadata(&path).ok().map(|named| (named.dev(), named.ino()));
            if named == Some((own.dev(), own.ino())) {
                break file;
            }
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        // What was cut would become a part of the next line.
        file.set_len(whole as u64)?;
        let under_way = UnderWay::parse(&String::from_utf8_lossy(&text[..whole]), of);
        Ok((UploadNote { path, file, of: of.map(str::to_owned), length: whole as u64 }, under_way))
    }

    /// Notes that an upload has begun; what was noted before is forgotten.
    pub(crate) fn begin(&mut self, id: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        let of = self.of.as_ref().map_or(String::new(), |of| format!("{of}\n"));
        self.write(&format!("upload {id}\n{of}"))?;
        self.file.sync_all()
    }

    /// Notes that the service has a part.
    pub(crate) fn add(&mut self, number: usize, part: &PartId) -> io::Result<()> {
        self.write(&format!("{number} {}\n", part.content_id))
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // Of a line there is all or nothing.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += text.len() as u64;
        Ok(())
    }

    /// Whether an upload can go on by it; else it can be ended.
    pub(crate) fn tells_of_what(&self) -> bool {
        self.of.is_some()
    }

    /// There is nothing to go on with any more.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

impl UnderWay {
    /// Of whole lines.
    fn parse(text: &str, of: Option<&str>) -> Option<UnderWay> {
        let (first, rest) = text.split_once('\n')?;
        let id = first.strip_prefix("upload ")?.to_owned();
        let lines = of.and_then(|of| rest.strip_prefix(of)?.strip_prefix('\n'));
        let Some(lines) = lines else {
            return Some(UnderWay { id, parts: BTreeMap::new(), is_this: false });
        };
        let mut parts = BTreeMap::new();
        for line in lines.lines() {
            let part = line.split_once(' ').and_then(|(n, part)| Some((n.parse().ok()?, part)));
            let Some((number, part)) = part else { break };
            parts.insert(number, PartId { content_id: part.to_owned() });
        }
        Some(UnderWay { id, parts, is_this: true })
    }
}

/// Where the note of an upload to an object is.
pub(crate) fn note_path(directory: &Path, object: &str) -> PathBuf {
    crate::kept::directory_of(directory, object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_tells_what_was_noted_but_for_a_last_line_that_was_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = note_path(&directory.path().join("new"), "s3://bucket/a b/é\n");
        let (mut note, under_way) = UploadNote::open(path.clone(), Some("these\nbytes")).unwrap();
        assert!(under_way.is_none());
        note.begin("first").unwrap();
        note.begin("second").unwrap();
        for number in [0, 2, 11] {
            note.add(number, &PartId { content_id: format!("\"tag {number}\"") }).unwrap();
        }
        let busy = UploadNote::open(path.clone(), Some("these\nbytes")).err().unwrap();
        assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
        drop(note);
        let length = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        for known in [vec![0, 2], vec![0, 2, 12]] {
            let (mut note, under_way) = UploadNote::open(path.clone(), Some("these\nbytes")).unwrap();
            let under_way = under_way.unwrap();
            assert!(under_way.is_this);
            assert_eq!(under_way.id, "second");
            assert_eq!(under_way.parts.keys().copied().collect::<Vec<_>>(), known);
            assert_eq!(under_way.parts[&2].content_id, "\"tag 2\"");
            // Not as a continuation of what was cut.
            note.add(12, &PartId { content_id: "twelve".to_owned() }).unwrap();
        }
        let (mut note, unknown) = UploadNote::open(path.clone(), None).unwrap();
        assert!(unknown.is_some_and(|unknown| !unknown.is_this));
        note.begin("third").unwrap();
        drop(note);
        for of in [None, Some(""), Some("these\nbytes")] {
            let (_, under_way) = UploadNote::open(path.clone(), of).unwrap();
            assert!(under_way.is_some_and(|u| !u.is_this && u.id == "third"), "nobody knows of what: {of:?}");
        }
        let (note, others) = UploadNote::open(path.clone(), Some("those")).unwrap();
        assert!(others.is_some_and(|others| !others.is_this && others.id == "third"));
        note.remove().unwrap();
        assert!(!path.exists());
    }
}
