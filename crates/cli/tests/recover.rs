//! `omnimap recover`, after a process has been killed between the commit and the end of its sync.

use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use omnimap::store::journal::{self, JournalOptions, Journaled};
use omnimap::store::{Decorator, FileStore, Result, StoreError};
use omnimap::{BackingStore, Format};

fn recover(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnimap")).arg("recover").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file whose sync fails: what was committed stays in the journal.
struct NoSync(FileStore);

impl Decorator for NoSync {
    fn inner(&self) -> &dyn BackingStore {
        &self.0
    }
    fn sync(&self) -> Result<()> {
        Err(StoreError::Io { action: "sync", length: 0, source: io::Error::other("as told") })
    }
}

fn leave_half_written(file: &Path, journal: &Path) {
    std::fs::write(file, vec![7; 3 * 4096]).unwrap();
    let object = Arc::new(NoSync(FileStore::open_writable(file).unwrap()));
    let options = JournalOptions::default();
    let journaled: Journaled = journal::open_file(object, file, Some(journal), options).unwrap();
    journaled.write_at(0, &[1; 4096]).unwrap();
    journaled.write_at(8192, &[2; 4096]).unwrap();
    journaled.sync().unwrap_err();
    drop(journaled);
    assert!(journal.exists(), "it holds what was committed");
    std::fs::write(file, vec![7; 3 * 4096]).unwrap();
}

#[test]
fn a_half_written_file_is_finished_and_then_there_is_nothing_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let name = file.to_str().unwrap();
    leave_half_written(&file, &journal::path_for(&file));
    let refused = omnimap::store::open(&file, Format::Auto).err().unwrap().to_string();
    assert!(refused.contains(&format!("omnimap recover {name}")), "{refused}");
    let output = recover(&[name]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "applied transaction 1: 2 blocks, 8192 bytes\n");
    let expected: Vec<u8> = [1, 7, 2].into_iter().flat_map(|byte| [byte; 4096]).collect();
    assert_eq!(std::fs::read(&file).unwrap(), expected);
    assert_eq!(text(&recover(&[name]).stdout), "nothing to recover\n");
    let json: serde_json::Value = serde_json::from_slice(&recover(&["--json", name]).stdout).unwrap();
    assert_eq!((json["file"].as_str(), json["recovered"].is_null()), (Some(name), true));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no journal stays");
}

#[test]
fn a_journal_elsewhere_is_named_and_json_says_what_was_done() {
    let directory = tempfile::tempdir().unwrap();
    let (file, journal) = (directory.path().join("file"), directory.path().join("elsewhere"));
    leave_half_written(&file, &journal);
    let arguments = [file.to_str().unwrap(), "--json", "--journal", journal.to_str().unwrap()];
    let json: serde_json::Value = serde_json::from_slice(&recover(&arguments).stdout).unwrap();
    assert_eq!(json["recovered"]["transaction"], 1);
    assert_eq!((&json["recovered"]["blocks"], &json["recovered"]["bytes"]), (&2.into(), &8192.into()));
    let missing = recover(&arguments);
    assert!(!missing.status.success() && text(&missing.stderr).contains("elsewhere"));
    assert!(!journal.exists());
}

#[test]
fn what_is_no_journal_is_an_error_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, b"bytes").unwrap();
    std::fs::write(journal::path_for(&file), b"a letter").unwrap();
    let output = recover(&[file.to_str().unwrap()]);
    let errors = text(&output.stderr);
    assert!(!output.status.success() && errors.contains("not a journal of Omnimap"), "{errors}");
    assert_eq!(std::fs::read(journal::path_for(&file)).unwrap(), b"a letter");
    let missing = recover(&["/no/such/file"]);
    assert!(!missing.status.success() && text(&missing.stderr).contains("No such file"));
}

/// A lock that goes away in a moment is a forked child's that has not begun its program, and no writer's.
#[test]
fn a_half_written_file_is_refused_although_a_lock_is_left_for_a_moment() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    leave_half_written(&file, &journal::path_for(&file));
    let left = std::fs::File::open(journal::path_for(&file)).unwrap();
    left.lock().unwrap();
    let unlock = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(left);
    });
    assert!(omnimap::store::open(&file, Format::Auto).is_err());
    unlock.join().unwrap();
}

/// A child that a dead writer has left has its lock as long as it lives.
#[test]
fn a_half_written_file_is_refused_although_a_lock_is_left_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    leave_half_written(&file, &journal::path_for(&file));
    let left = std::fs::File::open(journal::path_for(&file)).unwrap();
    left.lock().unwrap();
    let refused = omnimap::store::open(&file, Format::Auto).err().unwrap().to_string();
    assert!(refused.contains("try again") && refused.contains("omnimap recover"), "{refused}");
}

#[test]
fn a_half_written_file_is_neither_packed_nor_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    leave_half_written(&file, &journal::path_for(&file));
    let other = directory.path().join("other");
    std::fs::write(&other, b"backup").unwrap();
    let (file, other) = (file.to_str().unwrap(), other.to_str().unwrap());
    for arguments in [&["pack", file, "-"][..], &["cp", other, file], &["pack", "--force", other, file]] {
        let output = Command::new(env!("CARGO_BIN_EXE_omnimap")).args(arguments).output().unwrap();
        let errors = text(&output.stderr);
        assert!(!output.status.success() && errors.contains("omnimap recover"), "{arguments:?}: {errors}");
    }
    assert_eq!(std::fs::read(file).unwrap(), [7; 3 * 4096]);
    assert!(recover(&[file]).status.success());
}
