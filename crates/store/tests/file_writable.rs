//! Files that we write, and that others write too.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use omnimap_store::conformance::check_write;
use omnimap_store::{AlignedBytes, BackingStore, FileStore, StoreError};

const LENGTH: usize = 64 << 10;

/// A file where direct I/O works, as far as it does anywhere, and where it may not.
fn stores() -> Vec<(tempfile::TempDir, PathBuf, FileStore)> {
    let target = std::env::var("CARGO_TARGET_TMPDIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").to_owned());
    [target, "/dev/shm".to_owned()].into_iter().filter(|d| Path::new(d).is_dir()).map(store_in).collect()
}

fn store_in(directory: String) -> (tempfile::TempDir, PathBuf, FileStore) {
    let directory = tempfile::tempdir_in(directory).unwrap();
    let path = directory.path().join("file");
    fs::write(&path, [7; LENGTH]).unwrap();
    let store = FileStore::open_writable(&path).unwrap();
    (directory, path, store)
}

fn read(store: &FileStore) -> Result<(), StoreError> {
    store.read_at(0, &mut [0; 100]).map(drop)
}

fn assert_changed<T: std::fmt::Debug>(outcome: Result<T, StoreError>, what: &str) {
    assert!(matches!(outcome, Err(StoreError::Changed { .. })), "{what}: {outcome:?}");
}

/// Another handle, after a time that the stamps of older kernels can tell.
fn others(path: &Path) -> fs::File {
    thread::sleep(Duration::from_millis(12));
    fs::File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_write_after_a_write_of_others_is_refused_and_theirs_stays() {
    let mut aligned = AlignedBytes::new(4096);
    aligned.fill(1);
    for (_directory, path, store) in stores() {
        for bytes in [&b"ours"[..], &aligned] {
            store.write_at(0, bytes).unwrap();
            others(&path).write_all_at(b"theirs", 0).unwrap();
            let before = fs::read(&path).unwrap();
            assert_changed(store.write_at(0, bytes), "the next write");
            assert_changed(store.write_at(8192, bytes), "a write elsewhere");
            assert_changed(store.set_len(10), "another length");
            assert_changed(read(&store), "a read");
            assert!(fs::read(&path).unwrap() == before, "nothing was written");
            store.sync().unwrap();
            assert_changed(store.write_at(0, bytes), "after sync");
            store.refresh().unwrap();
            let mut now = [0; 6];
            store.read_at(0, &mut now).unwrap();
            assert_eq!(&now, b"theirs");
            store.write_at(0, bytes).unwrap();
            assert_eq!(&fs::read(&path).unwrap()[..bytes.len()], bytes);
        }
    }
}

#[test]
fn a_read_after_a_write_of_others_is_refused() {
    for (_directory, path, store) in stores() {
        store.write_at(100, b"ours").unwrap();
        read(&store).unwrap();
        others(&path).write_all_at(b"theirs", 5000).unwrap();
        assert_changed(read(&store), "the next read");
        assert_changed(store.write_at(0, b"x"), "the next write");
        assert_changed(read(&store), "and it stays so");
    }
}

#[test]
fn another_length_by_others_is_refused_until_it_is_taken() {
    for length in [10, LENGTH as u64 + 10] {
        for (_directory, path, store) in stores() {
            others(&path).set_len(length).unwrap();
            assert_changed(read(&store), "a read");
            assert_changed(store.write_at(LENGTH as u64 - 5, b"x"), "a write");
            assert_eq!(fs::metadata(&path).unwrap().len(), length, "no write made it longer");
            assert_eq!(store.len(), LENGTH as u64, "the length stays until somebody asks for the new one");
            store.refresh().unwrap();
            assert_eq!(store.len(), length);
            assert_eq!(store.read_at(0, &mut [0; 2 * LENGTH]).unwrap() as u64, length);
            store.write_at(length - 1, b"x").unwrap();
            let beyond = store.write_at(length, b"x");
            assert!(matches!(beyond, Err(StoreError::BeyondEnd { .. })), "{beyond:?}");
            read(&store).unwrap();
        }
        for (_directory, path, store) in stores() {
            others(&path).set_len(length).unwrap();
            assert_changed(store.write_at(LENGTH as u64 - 5, b"x"), "a write comes first");
        }
    }
}

#[test]
fn our_own_writes_are_no_change_however_many_run_in_parallel() {
    const THREADS: usize = 8;
    const WRITES: usize = 125;
    for (_directory, path, store) in stores() {
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let store = &store;
                scope.spawn(move || {
                    let mut aligned = AlignedBytes::new(4096);
                    for i in 0..WRITES {
                        let byte = (thread * WRITES + i) as u8;
                        aligned.fill(byte);
                        store.write_at((thread * 8192) as u64, &aligned).unwrap();
                        store.write_at((thread * 8192 + 4097) as u64, &[byte; 100]).unwrap();
                        let mut back = [0; 100];
                        store.read_at((thread * 8192 + 4097) as u64, &mut back).unwrap();
                        assert_eq!(back, [byte; 100]);
                        if i % 25 == 0 {
                            store.sync().unwrap();
                        }
                    }
                });
            }
        });
        read(&store).unwrap();
        store.write_at(0, b"x").unwrap();
        others(&path).write_all_at(b"y", 0).unwrap();
        assert_changed(store.write_at(0, b"x"), "and others are still noticed afterwards");
    }
}

#[test]
fn our_own_lengths_are_no_change_and_the_last_one_in_the_file_is_the_last_one_known() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 400;
    for (_directory, path, store) in stores() {
        let round = Barrier::new(THREADS as usize);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (store, path, round) = (&store, &path, &round);
                scope.spawn(move || {
                    let mut outcomes = Ok(());
                    for i in 0..ROUNDS {
                        round.wait();
                        let length = LENGTH as u64 + i % 7 * 1000 + thread;
                        let outcome = store.set_len(length).and_then(|()| read(store));
                        outcomes = outcomes.and(outcome.map_err(|e| e.to_string()));
                        round.wait();
                        if store.len() != fs::metadata(path).unwrap().len() {
                            outcomes = Err(format!("round {i}: {} is known", store.len()));
                        }
                    }
                    outcomes.unwrap();
                });
            }
        });
        store.write_at(store.len() - 1, b"x").unwrap();
    }
}

/// Nothing here is undone: a name or a count of links that is back where it was explains nothing.
#[test]
fn what_changes_no_byte_is_no_change_while_we_write() {
    for (directory, path, store) in stores() {
        let done = AtomicBool::new(false);
        let at = |name: &str| directory.path().join(name);
        thread::scope(|scope| {
            let (store, done) = (&store, &done);
            let writers: Vec<_> = (0..2u64)
                .map(|writer| {
                    scope.spawn(move || -> Result<(), StoreError> {
                        while !done.load(Ordering::Relaxed) {
                            store.write_at(writer * 4096 + 1, &[1; 100])?;
                            read(store)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            let mut name = path.clone();
            for i in 0..40 {
                let next = at(&format!("renamed {i}"));
                fs::rename(&name, &next).unwrap();
                fs::set_permissions(&next, fs::Permissions::from_mode(0o600 + i % 8)).unwrap();
                fs::hard_link(&next, at(&format!("link {i}"))).unwrap();
                name = next;
                thread::sleep(Duration::from_millis(1));
            }
            fs::remove_file(&name).unwrap();
            done.store(true, Ordering::Relaxed);
            for writer in writers {
                writer.join().unwrap().unwrap();
            }
        });
        store.write_at(0, b"without a name").unwrap();
        read(&store).unwrap();
    }
}

#[test]
fn what_changes_no_byte_is_no_change_between_writes() {
    type Change = fn(&Path, &Path);
    let changes: [(&str, Change); 4] = [
        ("rename", |from, to| fs::rename(from, to).unwrap()),
        ("mode", |path, _| fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap()),
        ("link", |from, to| fs::hard_link(from, to).unwrap()),
        ("unlink", |path, _| fs::remove_file(path).unwrap()),
    ];
    for (name, change) in changes {
        for (directory, path, store) in stores() {
            store.write_at(0, b"x").unwrap();
            thread::sleep(Duration::from_millis(12));
            change(&path, &directory.path().join("other"));
            store.write_at(0, b"y").unwrap_or_else(|e| panic!("{name}: {e}"));
            read(&store).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn refresh_of_a_file_that_is_only_read_takes_the_new_version() {
    let (_directory, path, _) = stores().remove(0);
    let store = FileStore::open(&path).unwrap();
    let before = store.version().unwrap();
    others(&path).set_len(10).unwrap();
    assert_changed(read(&store), "a read");
    assert_eq!(store.version().unwrap(), before);
    store.refresh().unwrap();
    assert_eq!(store.len(), 10);
    assert_ne!(store.version().unwrap(), before);
    read(&store).unwrap();
}

#[test]
fn open_or_create_makes_what_is_missing_and_keeps_what_is_there() {
    for (directory, path, _) in stores() {
        let store = FileStore::open_or_create(&path).unwrap();
        assert_eq!(store.len(), LENGTH as u64);
        store.write_at(0, b"x").unwrap();
        let missing = directory.path().join("missing");
        let store = FileStore::open_or_create(&missing).unwrap();
        assert_eq!(store.len(), 0);
        assert_eq!(store.version(), None, "what can be written promises no version");
        store.set_len(10_000).unwrap();
        store.write_at(9_999, b"x").unwrap();
        store.sync().unwrap();
        assert_eq!(fs::read(&missing).unwrap().len(), 10_000);
        check_write(&store);
        let refused = FileStore::open_or_create(directory.path().join("no directory/file"));
        assert!(matches!(refused, Err(StoreError::Open { .. })));
        assert!(FileStore::open_writable(directory.path().join("another")).is_err());
    }
}
