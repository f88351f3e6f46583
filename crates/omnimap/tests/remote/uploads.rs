//! Uploads that were interrupted go on where they were.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::multipart::MultipartStore;
use omnimap::RemoteOptions;
use omnimap::remote::put_resuming;
use omnimap::store::{BackingStore, Counting, FileStore, MemoryStore, StoreError, Version};
use omnimap_testkit::{Prng, within};

use crate::server::{S3, options, url};
use crate::{LIMIT, MIB, bytes, start_victim, told_victim};

const LENGTH: u64 = 60 * MIB + 3;
/// A source that promises nothing.
const NO_VERSION: u64 = 0;
/// Of an upload of that length.
const PART: u64 = 8 * MIB;

/// Bytes of one version, of which the first few can be read, and it is counted how many are.
struct Part {
    bytes: Vec<u8>,
    version: u64,
    readable: u64,
    read: Arc<AtomicU64>,
}

impl BackingStore for Part {
    fn name(&self) -> &str {
        "a source"
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn version(&self) -> Option<Version> {
        (self.version != NO_VERSION).then(|| Version::new(self.version.to_string()))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError> {
        let length = into.len() as u64;
        if offset + length > self.readable {
            // Not before the others have gone.
            std::thread::sleep(Duration::from_millis(300));
            return Err(StoreError::Io { action: "read", length, source: io::Error::other("a broken disk") });
        }
        self.read.fetch_add(length, Ordering::Relaxed);
        into.copy_from_slice(&self.bytes[offset as usize..][..into.len()]);
        Ok(into.len())
    }
}

/// Uploads; gives the outcome, and how many bytes were read for it.
fn upload(s3: &S3, notes: &Path, version: u64, readable: u64) -> (Result<(), StoreError>, u64) {
    let read = Arc::new(AtomicU64::new(0));
    let mut bytes = bytes(LENGTH);
    bytes[0] = version as u8;
    let part = Part { bytes, version, readable, read: read.clone() };
    let told = Arc::new(AtomicU64::new(0));
    let last = told.clone();
    let outcome = put_resuming(&url("object"), &s3.options(), Arc::new(part), notes, move |bytes| {
        last.fetch_max(bytes, Ordering::Relaxed);
    });
    if outcome.is_ok() {
        assert_eq!(told.load(Ordering::Relaxed), LENGTH, "all that is there is told");
        let mut found = s3.get("object");
        assert_eq!(std::mem::replace(&mut found[0], crate::bytes(1)[0]), version as u8);
        assert!(found == crate::bytes(LENGTH));
        assert_eq!(std::fs::read_dir(notes).unwrap().count(), 0, "the note is gone");
    }
    (outcome, read.load(Ordering::Relaxed))
}

/// Uploads three parts; gives the name of the upload that is noted.
fn interrupted(s3: &S3, notes: &Path, version: u64) -> String {
    upload(s3, notes, version, 3 * PART).0.unwrap_err();
    let note = std::fs::read_dir(notes).unwrap().next().expect("a note").unwrap();
    let text = std::fs::read_to_string(note.path()).unwrap();
    text.lines().next().unwrap().strip_prefix("upload ").unwrap().to_owned()
}

/// Whether an upload is under way still; it is not afterwards.
fn ends(s3: &S3, id: &String) -> bool {
    let path = object_store::path::Path::from("object");
    s3.wait(async |client| client.abort_multipart(&path, id).await).is_ok()
}

#[test]
fn an_upload_goes_on_with_the_parts_that_are_missing() {
    within(LIMIT, || {
        let s3 = S3::start();
        let notes = tempfile::tempdir().unwrap();
        let (outcome, read) = upload(&s3, notes.path(), 1, 3 * PART);
        let told = outcome.unwrap_err().to_string();
        assert!(told.contains("a broken disk"), "{told}");
        assert_eq!(read, 3 * PART);
        let (outcome, _) = upload(&s3, notes.path(), 1, 5 * PART);
        outcome.unwrap_err();
        let (outcome, read) = upload(&s3, notes.path(), 1, LENGTH);
        outcome.unwrap();
        assert_eq!(read, LENGTH - 5 * PART, "what had gone went again");
    });
}

#[test]
fn parts_of_another_version_or_that_are_gone_are_not_gone_on_with() {
    within(LIMIT, || {
        let s3 = S3::start();
        let notes = tempfile::tempdir().unwrap();
        let first = interrupted(&s3, notes.path(), 1);
        let second = interrupted(&s3, notes.path(), 2);
        assert_ne!(first, second);
        assert!(!ends(&s3, &first), "nobody goes on with it: it was ended");
        // As a rule of the bucket may do.
        assert!(ends(&s3, &second));
        let (outcome, read) = upload(&s3, notes.path(), 2, LENGTH);
        outcome.unwrap();
        assert!(read >= LENGTH, "{read}");
    });
}

#[test]
fn of_a_source_without_a_version_nothing_is_gone_on_with() {
    within(LIMIT, || {
        let s3 = S3::start();
        let notes = tempfile::tempdir().unwrap();
        let id = interrupted(&s3, notes.path(), 1);
        for _ in 0..2 {
            upload(&s3, notes.path(), NO_VERSION, 3 * PART).0.unwrap_err();
            assert_eq!(std::fs::read_dir(notes.path()).unwrap().count(), 0, "its parts are not kept");
        }
        assert!(!ends(&s3, &id), "it was ended");
        let (outcome, read) = upload(&s3, notes.path(), NO_VERSION, LENGTH);
        outcome.unwrap();
        assert_eq!(read, LENGTH);
    });
}

#[test]
fn an_upload_of_less_ends_what_is_under_way() {
    within(LIMIT, || {
        let s3 = S3::start();
        let notes = tempfile::tempdir().unwrap();
        let id = interrupted(&s3, notes.path(), 1);
        let small = Arc::new(MemoryStore::new("small", vec![7; 100]));
        put_resuming(&url("object"), &s3.options(), small, notes.path(), |_| ()).unwrap();
        assert_eq!(s3.get("object"), vec![7; 100]);
        assert_eq!(std::fs::read_dir(notes.path()).unwrap().count(), 0);
        assert!(!ends(&s3, &id), "it was ended");
    });
}

#[test]
fn an_upload_whose_process_was_killed_goes_on() {
    let name = "uploads::an_upload_whose_process_was_killed_goes_on";
    let put = |options: &RemoteOptions, directory: &Path| {
        let file = Arc::new(Counting::new(Arc::new(FileStore::open(directory.join("file")).unwrap())));
        let outcome = put_resuming(&url("object"), options, file.clone(), &directory.join("notes"), |_| ());
        outcome.map(|()| file.counts().bytes_read)
    };
    if let Some((address, directory)) = told_victim() {
        put(&options(address), &directory).unwrap();
        return;
    }
    within(LIMIT, move || {
        let s3 = S3::start();
        let directory = tempfile::tempdir().unwrap();
        let mut random = Prng::new(7);
        // Twice as many parts as go together.
        let length = 16 * PART + 5;
        let mut expected: Vec<u8> = (0..length).map(|at| (at >> 12) as u8).collect();
        for round in 0..3 {
            expected[5] = round;
            std::fs::write(directory.path().join("file"), &expected).unwrap();
            let link = s3.far();
            let mut victim = start_victim(name, link.address(), directory.path());
            // The name, four lines of what it is, and a line for each part.
            let notes = directory.path().join("notes");
            let parts_noted = || {
                let note = std::fs::read_dir(&notes).ok()?.next()?.ok()?;
                let lines = std::fs::read_to_string(note.path()).ok()?.lines().count() as u64;
                lines.checked_sub(5).filter(|parts| *parts > 1)
            };
            while parts_noted().is_none() {
                assert!(victim.try_wait().unwrap().is_none(), "round {round}: it ended by itself");
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(random.below(200)));
            victim.kill().unwrap();
            victim.wait().unwrap();
            // One of them may be the last, which is short.
            let there = (parts_noted().expect("it was not finished") - 1) * PART;
            let read = put(&options(link.address()), directory.path()).unwrap();
            assert!(read <= length - there, "round {round}: {read} of {length} bytes, {there} were there");
            assert!(s3.get("object") == expected, "round {round}");
        }
    });
}
