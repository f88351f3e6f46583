//! Files that change, move, or are no files.

use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::Duration;

use omnimap_store::{AlignedBytes, BackingStore, FileStore, StoreError};

fn store(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, bytes).unwrap();
    let store = FileStore::open(&path).unwrap();
    (directory, path, store)
}

fn read(store: &FileStore) -> Result<(), StoreError> {
    store.read_at(0, &mut [0; 100]).map(drop)
}

#[test]
fn e4_every_kind_of_write_is_noticed() {
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 5] = [
        ("write", |p| fs::File::options().write(true).open(p).unwrap().write_all_at(b"x", 5000).unwrap()),
        ("append", |p| fs::File::options().append(true).open(p).unwrap().write_all(b"x").unwrap()),
        ("truncate", |p| fs::File::options().write(true).open(p).unwrap().set_len(10).unwrap()),
        ("truncate and write the same length", |p| fs::write(p, [9; 9000]).unwrap()),
        ("write, and put the modification time back", |p| {
            let before = fs::metadata(p).unwrap().modified().unwrap();
            let mut file = fs::File::options().write(true).open(p).unwrap();
            file.rewind().unwrap();
            file.write_all(b"x").unwrap();
            file.set_modified(before).unwrap();
        }),
    ];
    for (name, change) in changes {
        let (_directory, path, store) = store(&[7; 9000]);
        read(&store).unwrap();
        // The stamps of older kernels are this coarse.
        std::thread::sleep(Duration::from_millis(12));
        change(&path);
        let outcome = read(&store);
        assert!(matches!(outcome, Err(StoreError::Changed { .. })), "{name}: {outcome:?}");
        assert!(read(&store).is_err(), "{name}: and stays so");
    }
}

#[test]
fn e4_what_changes_no_byte_changes_nothing() {
    let (directory, path, store) = store(&[7; 9000]);
    std::thread::sleep(Duration::from_millis(12));
    let other = directory.path().join("other");
    fs::rename(&path, &other).unwrap();
    read(&store).unwrap();
    fs::hard_link(&other, &path).unwrap();
    read(&store).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o400)).unwrap();
    read(&store).unwrap();
    fs::remove_file(&other).unwrap();
    read(&store).unwrap();
    fs::write(directory.path().join("new"), b"x").unwrap();
    fs::rename(directory.path().join("new"), &path).unwrap();
    read(&store).unwrap();
    assert_eq!(store.len(), 9000);
}

#[test]
fn m18_what_cannot_be_mapped_is_refused_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let refusal = |path: &std::path::Path| FileStore::open(path).err().expect("refused").to_string();
    assert!(refusal(directory.path()).contains("is a directory"));
    assert!(refusal(std::path::Path::new("/dev/zero")).contains("character device"));
    assert!(refusal(&directory.path().join("missing")).contains("No such file"));
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(refusal(&pipe).contains("is a pipe"), "and opening it does not wait for a writer");
    let write_only =
        fs::File::options().write(true).create(true).truncate(true).open(directory.path().join("w"));
    let refused = FileStore::from_file("w", write_only.unwrap());
    assert!(matches!(refused, Err(StoreError::Open { .. })), "M09: not opened for reading");
}

#[test]
fn errors_of_opening_have_the_systems_number() {
    let error = FileStore::open("/no/such/file").err().unwrap();
    assert_eq!(error.errno(), 2);
}

#[test]
fn the_time_of_a_read_does_not_begin_anew_behind_the_last_whole_block() {
    let directory = std::env::current_exe().unwrap();
    let file = tempfile::NamedTempFile::new_in(directory.parent().unwrap()).unwrap();
    std::fs::write(file.path(), vec![7; 4096 + 100]).unwrap();
    let store = FileStore::open(file.path()).unwrap();
    let mut into = AlignedBytes::new(4096);
    // How often it is called is for the machine to say: not at all with one processor, or if reads are not direct.
    for _ in 0..200 {
        let mut last = Duration::ZERO;
        let mut meanwhile = |time| {
            assert!(time > last, "{time:?} after {last:?}");
            last = time;
        };
        assert_eq!(store.read_awaited(4096, &mut into, &mut meanwhile).unwrap(), 100);
        assert_eq!(into[..100], [7; 100]);
    }
}
