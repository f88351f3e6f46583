//! The journal where nothing fails: conformance, recovery, limits, and the file beside the object's.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use omnimap_store::conformance::{check_read, check_write};
use omnimap_store::journal::{self, JournalOptions, Journaled, Recovered};
use omnimap_store::{
    AlignedBytes, BackingStore, Counting, Decorator, Faulty, FileStore, Format, MemoryStore, Misbehaviour,
    Result, StoreError, Verified, WriteAt, open,
};

const B: usize = 4096;

fn memory(bytes: Vec<u8>) -> Arc<MemoryStore> {
    Arc::new(MemoryStore::writable("memory", bytes))
}

fn all(store: &dyn BackingStore) -> Vec<u8> {
    let mut bytes = vec![0; store.len() as usize];
    assert_eq!(store.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn over(object: &Arc<MemoryStore>, journal: &Arc<MemoryStore>) -> Journaled {
    Journaled::open(object.clone(), journal.clone(), JournalOptions::default()).unwrap()
}

/// Stores everything but syncs, which fail as long as they are told to.
struct NoSync(Arc<dyn BackingStore>, AtomicBool);

impl Decorator for NoSync {
    fn inner(&self) -> &dyn BackingStore {
        &self.0
    }
    fn sync(&self) -> Result<()> {
        if self.1.load(Ordering::SeqCst) {
            return Err(StoreError::Io {
                action: "sync",
                length: 0,
                source: std::io::Error::from_raw_os_error(5),
            });
        }
        self.0.sync()
    }
}

/// An object and a journal with a committed transaction that could not be applied.
fn half_written(object: Vec<u8>, change: impl FnOnce(&Journaled)) -> (Arc<MemoryStore>, Arc<MemoryStore>) {
    let (object, journal) = (memory(object), memory(Vec::new()));
    let failing = Arc::new(NoSync(object.clone(), AtomicBool::new(true)));
    let journaled = Journaled::open(failing, journal.clone(), JournalOptions::default()).unwrap();
    change(&journaled);
    journaled.sync().expect_err("the object's sync");
    (object, journal)
}

#[test]
fn a_journaled_store_conforms() {
    let store = over(&memory(vec![1; 10]), &memory(Vec::new()));
    assert!(store.is_atomic());
    check_write(&store);
    store.sync().unwrap();
    let expected = all(&store);
    check_read(&store, |at| expected[at as usize]);
    let behind = Verified::new(Arc::new(over(&memory(vec![1; 10]), &memory(Vec::new()))));
    check_write(&behind);
}

#[test]
fn y05_the_object_is_not_touched_before_the_sync_and_has_everything_after_it() {
    let (object, journal) = (memory(vec![7; 10 * B]), memory(Vec::new()));
    let store = over(&object, &journal);
    store.write_at(5, &[1; 3 * B]).unwrap();
    store.set_len(2 * B as u64 + 9).unwrap();
    store.set_len(12 * B as u64).unwrap();
    assert_eq!(all(&*object), vec![7; 10 * B]);
    let expected = all(&store);
    assert_eq!(expected[2 * B + 8..2 * B + 11], [1, 0, 0]);
    store.sync().unwrap();
    assert_eq!(all(&*object), expected);
    assert_eq!(all(&store), expected);
}

#[test]
fn a_sync_with_nothing_to_do_asks_nothing_of_the_stores() {
    let object = Arc::new(Counting::new(memory(vec![7; B])));
    let journal = Arc::new(Counting::new(memory(Vec::new())));
    let store = Journaled::open(object.clone(), journal.clone(), JournalOptions::default()).unwrap();
    store.sync().unwrap();
    store.set_len(B as u64).unwrap();
    store.sync().unwrap();
    assert_eq!((object.counts().syncs, journal.counts().syncs), (0, 0));
    store.write_at(0, b"x").unwrap();
    store.sync().unwrap();
    store.sync().unwrap();
    assert_eq!((object.counts().syncs, journal.counts().syncs), (1, 1));
}

#[test]
fn neighbours_are_written_together() {
    let object = Arc::new(Counting::new(memory(vec![7; 64 * B])));
    let journal = Arc::new(Counting::new(memory(Vec::new())));
    let store = Journaled::open(object.clone(), journal.clone(), JournalOptions::default()).unwrap();
    store.write_at(0, &AlignedBytes::new(16 * B)).unwrap();
    assert_eq!(journal.counts().writes, 1);
    for block in (16..32u64).rev() {
        store.write_at(block * B as u64, &[3; B]).unwrap();
    }
    store.write_at(0, &AlignedBytes::new(16 * B)).unwrap();
    assert_eq!(journal.counts().writes, 18, "in place, and again in one");
    store.sync().unwrap();
    // The preferred size of a memory store is 128 KiB: all 32 blocks.
    assert_eq!(object.counts().writes, 1);
    assert_eq!(all(&*object)[20 * B..21 * B], [3; B]);
}

/// Writes whole blocks together, full of one value; whether each was written.
fn write_blocks(store: &dyn BackingStore, blocks: &[u64], value: u8) -> Vec<bool> {
    let bytes = AlignedBytes::from(&[value; B][..]);
    let writes: Vec<WriteAt<'_>> =
        blocks.iter().map(|block| WriteAt { offset: block * B as u64, bytes: &bytes }).collect();
    let mut outcomes = vec![false; blocks.len()];
    store.write_each(&writes, &mut |number, outcome| outcomes[number] = outcome.is_ok());
    outcomes
}

#[test]
fn scattered_blocks_that_are_written_together_go_to_the_journal_in_one_transfer() {
    let object = memory(vec![7; 64 * B]);
    let journal = Arc::new(Counting::new(memory(Vec::new())));
    let store = Journaled::open(object.clone(), journal.clone(), JournalOptions::default()).unwrap();
    assert_eq!(write_blocks(&store, &[0, 2, 3, 40, 63], 1), [true; 5]);
    assert_eq!(journal.counts().writes, 1);
    // Two have their slots, and lie apart; three are new.
    assert_eq!(write_blocks(&store, &[2, 10, 11, 12, 63], 2), [true; 5]);
    assert_eq!(journal.counts().writes, 4);
    let mut expected = vec![7; 64 * B];
    let ones = [0, 3, 40].map(|block| (block, 1));
    for (block, value) in ones.into_iter().chain([2, 10, 11, 12, 63].map(|block| (block, 2))) {
        expected[block * B..(block + 1) * B].fill(value);
    }
    assert_eq!(all(&store), expected);
    store.sync().unwrap();
    assert_eq!(all(&*object), expected);
}

#[test]
fn a_sync_costs_two_syncs_and_three_blocks_beside_each_block_twice() {
    let object = Arc::new(Counting::new(memory(vec![7; 400 * B])));
    let journal = Arc::new(Counting::new(memory(Vec::new())));
    let store = Journaled::open(object.clone(), journal.clone(), JournalOptions::default()).unwrap();
    let blocks: Vec<u64> = (0..150).map(|block| 2 * block).collect();
    assert!(write_blocks(&store, &blocks, 1).iter().all(|written| *written));
    store.sync().unwrap();
    let (object, journal) = (object.counts(), journal.counts());
    assert_eq!((object.syncs, journal.syncs), (1, 1));
    assert_eq!((object.writes, object.bytes_written), (150, 150 * B as u64));
    // Slots, table, record, and the record that says empty.
    assert_eq!((journal.writes, journal.bytes_written), (4, (150 + 3) * B as u64));
    // The header, at the opening, of a file that has none yet; and the slots.
    assert_eq!((journal.reads, journal.bytes_read), (2, 150 * B as u64));
}

#[test]
fn of_writes_that_are_made_together_those_are_made_that_can_be() {
    let (object, faulty) = (memory(vec![7; 100 * B]), Arc::new(Faulty::new(memory(Vec::new()))));
    let store = Journaled::open(object.clone(), faulty.clone(), JournalOptions { bytes_max: 0 }).unwrap();
    faulty.on_write(0..u64::MAX, Misbehaviour::Fail, 2);
    assert_eq!(write_blocks(&store, &[0, 2, 4], 1), [false, true, true], "all together, and then the first");
    let many: Vec<u64> = (10..40).collect();
    let written = write_blocks(&store, &many, 2);
    let count = written.iter().filter(|written| **written).count();
    assert!((10..15).contains(&count) && written.is_sorted_by(|a, b| a >= b), "as many as fit: {written:?}");
    store.sync().unwrap();
    let mut expected = vec![7; 100 * B];
    [2, 4].into_iter().for_each(|block| expected[block * B..(block + 1) * B].fill(1));
    expected[10 * B..(10 + count) * B].fill(2);
    assert_eq!(all(&*object), expected);
}

#[test]
fn what_was_committed_is_applied_at_the_next_opening() {
    let mut expected = vec![7; 10 * B];
    let (object, journal) = half_written(expected.clone(), |store| {
        store.write_at(B as u64, &[1; 2 * B]).unwrap();
        store.write_at(9 * B as u64 + 5, &[2; 5]).unwrap();
        store.set_len(9 * B as u64 + 8).unwrap();
    });
    expected[B..3 * B].fill(1);
    expected[9 * B + 5..].fill(2);
    expected.truncate(9 * B + 8);
    object.write_at(B as u64, &[9; B]).unwrap();
    let pending = journal::pending(&*journal).unwrap().unwrap();
    assert_eq!((pending.sequence, pending.blocks, pending.bytes), (1, 3, 2 * B as u64 + 8));
    let store = over(&object, &journal);
    assert_eq!(store.recovered(), Some(Recovered { sequence: 1, blocks: 3, bytes: 2 * B as u64 + 8 }));
    assert_eq!((all(&*object), all(&store)), (expected.clone(), expected.clone()));
    assert_eq!(journal::pending(&*journal).unwrap(), None);
    // And numbers go on.
    store.write_at(0, &[1]).unwrap();
    store.sync().unwrap();
    assert_eq!(over(&object, &journal).recovered(), None);
    drop(store);
    let (other, journal) = half_written(vec![7; 10 * B], |store| store.set_len(5).unwrap());
    other.set_len(77).unwrap();
    let refused = Journaled::open(other, journal, JournalOptions::default()).err().unwrap().to_string();
    assert!(refused.contains("another object") && refused.contains("77"), "{refused}");
}

#[test]
fn a_transaction_of_which_a_byte_is_missing_was_not_committed() {
    let whole = |store: &Journaled| store.write_at(0, &[1; 3 * B]).unwrap();
    let journal_bytes = all(&*half_written(vec![7; 3 * B], whole).1);
    for at in [20, B, 3 * B - 1, 4 * B - 1, 4 * B, 4 * B + 71] {
        let mut damaged = journal_bytes.clone();
        damaged[at] ^= 1;
        let (object, journal) = (memory(vec![7; 3 * B]), memory(damaged));
        let store = over(&object, &journal);
        assert_eq!((store.recovered(), all(&store)), (None, vec![7; 3 * B]), "byte {at}");
    }
}

#[test]
fn a_transaction_that_was_given_up_does_not_come_back() {
    let (_, journal) = half_written(vec![7; 3 * B], |store| store.write_at(0, &[1; 3 * B]).unwrap());
    journal.write_at(2 * B as u64, &[0; B]).unwrap();
    let object = memory(vec![7; 3 * B]);
    let store = over(&object, &journal);
    assert_eq!(store.recovered(), None);
    // The program begins again, and dies before its sync.
    store.write_at(0, &[1; 3 * B]).unwrap();
    drop(store);
    assert_eq!(over(&object, &journal).recovered(), None);
    assert_eq!(all(&*object), vec![7; 3 * B]);
}

#[test]
fn a_full_journal_refuses_and_loses_nothing() {
    let (object, journal) = (memory(vec![7; 100 * B]), memory(Vec::new()));
    let options = JournalOptions { bytes_max: 0 };
    let store = Journaled::open(object.clone(), journal.clone(), options).unwrap();
    let mut written = 0;
    let error = loop {
        match store.write_at(written * B as u64, &[1; B]) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::JournalFull { limit_bytes: JournalOptions::BYTES_MIN }), "{error}");
    assert_eq!(error.errno(), 28);
    assert!(error.to_string().contains("sync more often"), "{error}");
    assert!(written >= 12, "{written}");
    store.write_at(0, &[2; B]).expect("a block that has its slot");
    assert!(store.write_at(0, &[3; 50 * B]).is_err());
    let mut expected = vec![7; 100 * B];
    expected[..written as usize * B].fill(1);
    expected[..B].fill(2);
    assert_eq!(all(&store), expected);
    store.sync().unwrap();
    assert_eq!(all(&*object), expected);
    assert!(journal.len() <= JournalOptions::BYTES_MIN);
    store.write_at(50 * B as u64, &[4; 12 * B]).expect("there is room again");
}

#[test]
fn others_change_the_object_and_what_was_written_here_stays_on_top() {
    let (object, journal) = (memory(vec![7; 4 * B]), memory(Vec::new()));
    let store = over(&object, &journal);
    store.write_at(0, &[1; B]).unwrap();
    object.set_len(5 * B as u64).unwrap();
    object.write_at(4 * B as u64, &[8; B]).unwrap();
    store.refresh().unwrap();
    store.sync().unwrap();
    assert_eq!((all(&*object)[..B] == [1; B], all(&*object)[4 * B..] == [8; B]), (true, true));
    store.set_len(B as u64).unwrap();
    object.set_len(3 * B as u64).unwrap();
    store.refresh().unwrap();
    assert_eq!(store.len(), B as u64);
    store.sync().unwrap();
    assert_eq!(all(&*object), vec![1; B]);
}

#[test]
fn reads_go_on_while_a_transaction_is_applied_and_see_it_whole() {
    let object = Arc::new(Faulty::new(memory(vec![7; 8 * B])));
    let store =
        Arc::new(Journaled::open(object.clone(), memory(Vec::new()), JournalOptions::default()).unwrap());
    store.write_at(0, &[1; 2 * B]).unwrap();
    store.write_at(4 * B as u64, &[1; 2 * B]).unwrap();
    object.on_write(0..u64::MAX, Misbehaviour::Hold, 2);
    let syncing = std::thread::spawn({
        let store = store.clone();
        move || store.sync()
    });
    assert!(object.wait_until_held(2, Duration::from_secs(10)));
    let mut expected = vec![7; 8 * B];
    expected[..2 * B].fill(1);
    expected[4 * B..6 * B].fill(1);
    assert_eq!(all(&*store), expected);
    object.release();
    assert_eq!(all(&*store), expected);
    object.heal();
    syncing.join().unwrap().unwrap();
    assert_eq!(all(&*store), expected);
}

#[test]
fn a_slot_is_not_used_again_while_it_is_read() {
    let journal = Arc::new(Faulty::new(memory(Vec::new())));
    let store = Journaled::open(memory(vec![7; 8 * B]), journal.clone(), JournalOptions::default()).unwrap();
    store.write_at(0, &[1; B]).unwrap();
    journal.on_read(0..u64::MAX, Misbehaviour::Hold, 1);
    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| {
            let mut bytes = [0; B];
            store.read_at(0, &mut bytes).map(|_| bytes)
        });
        assert!(journal.wait_until_held(1, Duration::from_secs(10)));
        scope.spawn(|| {
            store.sync().unwrap();
            store.write_at(4 * B as u64, &[2; B]).unwrap();
            written.store(true, Ordering::SeqCst);
        });
        // Time enough to do wrong in.
        for _ in 0..50 {
            if !written.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        journal.heal();
        assert_eq!(read.join().unwrap().unwrap(), [1; B]);
    });
    assert!(written.into_inner());
}

/// One writer less when it is dropped.
struct Over<'a>(&'a AtomicUsize);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Every thread writes its number over blocks that others write too; each block must be of one thread, whole.
#[test]
fn concurrent_writes_of_the_same_blocks_give_one_or_the_other() {
    const THREADS: u8 = 6;
    let (object, journal) = (memory(vec![0; 16 * B]), memory(Vec::new()));
    let store = over(&object, &journal);
    let check = |bytes: &[u8]| {
        for block in bytes.chunks(B) {
            assert!(block.iter().all(|b| *b == block[0]), "a mixture");
        }
    };
    let writers_left = AtomicUsize::new(usize::from(THREADS));
    std::thread::scope(|scope| {
        for thread in 1..=THREADS {
            let (store, left) = (&store, &writers_left);
            scope.spawn(move || {
                // By a panic too, or the reader would go on for ever.
                let _over = Over(left);
                for i in 0..150u64 {
                    let (first, count) = ((i * 7 + u64::from(thread)) % 12, 1 + (i % 4) as usize);
                    store.write_at(first * B as u64, &vec![thread; count * B]).unwrap();
                    if i % 40 == 0 {
                        store.sync().unwrap();
                    }
                }
            });
        }
        while writers_left.load(Ordering::SeqCst) > 0 {
            check(&all(&store));
        }
    });
    let last = all(&store);
    assert!(last.chunks(B).take(12).all(|block| block[0] > 0), "a block was lost");
    store.sync().unwrap();
    assert_eq!(all(&*object), last);
}

fn file_with(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("object");
    fs::write(&path, bytes).unwrap();
    (directory, path)
}

fn open_file(path: &Path) -> Result<Journaled> {
    let object = Arc::new(Verified::new(Arc::new(FileStore::open_writable(path)?)));
    journal::open_file(object, path, None, JournalOptions::default())
}

#[test]
fn a_journal_beside_a_file_conforms_is_locked_and_goes_away() {
    let (directory, path) = file_with(&[1; 10]);
    let beside = journal::path_for(&path);
    assert_eq!(beside.file_name().unwrap(), "object.omnimap-journal");
    let store = open_file(&path).unwrap();
    check_write(&store);
    let refused = open_file(&path).err().unwrap().to_string();
    assert!(refused.contains("is being written by another process"), "{refused}");
    open(&path, Format::Plain).expect("with a live writer, reading is its affair");
    store.sync().unwrap();
    let expected = all(&store);
    store.write_at(0, b"given up").unwrap();
    drop(store);
    assert_eq!(fs::read(&path).unwrap(), expected);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no journal stays");
}

#[test]
fn one_journal_for_all_names_of_a_file_and_no_more_rights_than_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, path) = file_with(&[1; 10]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let store = open_file(&link).unwrap();
    assert_eq!(journal::path_for(&link), journal::path_for(&path));
    let mode = fs::metadata(journal::path_for(&path)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(open_file(&path).is_err());
    drop(store);
    // A link where the journal should be is not followed.
    std::os::unix::fs::symlink(&path, journal::path_for(&path)).unwrap();
    assert!(open_file(&path).is_err());
    assert_eq!(fs::read(&path).unwrap(), [1; 10]);
}

#[test]
fn a_half_written_file_is_refused_until_it_is_recovered() {
    let (object, journal) = half_written(vec![7; 3 * B], |store| {
        store.write_at(0, &[1; B]).unwrap();
        store.write_at(2 * B as u64, &[1; B]).unwrap();
    });
    let expected = all(&*object);
    let (_directory, path) = file_with(&[7; 3 * B]);
    let beside = journal::path_for(&path);
    fs::write(&beside, all(&*journal)).unwrap();
    let refused = open(&path, Format::Auto).err().unwrap();
    assert!(matches!(refused, StoreError::Unusable { .. }));
    assert!(refused.to_string().contains("omnimap recover"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), [7; 3 * B], "and nothing is changed");
    let store = open_file(&path).unwrap();
    assert_eq!(store.recovered().unwrap().blocks, 2);
    drop(store);
    assert_eq!(fs::read(&path).unwrap(), expected);
    open(&path, Format::Auto).unwrap();
}

#[test]
fn what_is_no_journal_is_left_alone() {
    let (_directory, path) = file_with(&[7; 3 * B]);
    let beside = journal::path_for(&path);
    fs::write(&beside, b"a letter to somebody").unwrap();
    let refused = open_file(&path).err().unwrap().to_string();
    assert!(refused.contains("not a journal of Omnimap") && refused.contains("move it away"), "{refused}");
    assert_eq!(fs::read(&beside).unwrap(), b"a letter to somebody");
    open(&path, Format::Auto).expect("reading needs no journal");
    let read_only: Arc<dyn BackingStore> = Arc::new(MemoryStore::new("fixed", vec![1]));
    let refused = Journaled::open(read_only, memory(Vec::new()), JournalOptions::default()).err().unwrap();
    assert!(refused.to_string().contains("read-only"), "{refused}");
}

/// Not even one that begins with zeros, as an image of a disk does.
#[test]
fn somebodys_file_of_zeros_is_no_journal_and_stays() {
    let (directory, path) = file_with(&[7; 3 * B]);
    let image = directory.path().join("disk.img");
    let mut with_bytes = vec![0; 1 << 20];
    with_bytes[64 << 10..].fill(7);
    for bytes in [with_bytes, vec![0; 1 << 20], vec![0; B + 1]] {
        fs::write(&image, &bytes).unwrap();
        let object = Arc::new(FileStore::open_writable(&path).unwrap());
        let refused = journal::open_file(object, &path, Some(&image), JournalOptions::default()).err();
        assert!(refused.is_some_and(|e| e.to_string().contains("not a journal of Omnimap")));
        assert!(fs::read(&image).unwrap() == bytes, "as it was");
    }
}

#[test]
fn a_journal_that_was_torn_when_it_was_made_is_made_anew() {
    let (directory, path) = file_with(&[7; 3 * B]);
    let beside = journal::path_for(&path);
    drop(open_file(&path).unwrap());
    let store = open_file(&path).unwrap();
    let header = fs::read(&beside).unwrap();
    drop(store);
    assert_eq!((header.len(), &header[..8]), (B, &b"OMNIJRNL"[..]), "before anything is written");
    for written in [0, 1, 8, 20, 127, 128] {
        for length in [written, 512, B] {
            let mut torn = header[..written].to_vec();
            torn.resize(length.max(written), 0);
            fs::write(&beside, &torn).unwrap();
            let store = open_file(&path).unwrap();
            assert!(fs::read(&beside).unwrap() == header, "{written} bytes of {length}");
            store.write_at(0, &[1; B]).unwrap();
            store.sync().unwrap();
        }
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no journal stays");
}

/// A program that is killed before its first sync leaves slots and no transaction.
#[test]
fn a_journal_whose_writer_was_killed_is_known_again() {
    let (_directory, path) = file_with(&[7; 3 * B]);
    let beside = journal::path_for(&path);
    let store = open_file(&path).unwrap();
    store.write_at(0, &[1; B]).unwrap();
    let left = fs::read(&beside).unwrap();
    drop(store);
    assert!(left[B..2 * B] == [1; B]);
    fs::write(&beside, left).unwrap();
    let store = open_file(&path).unwrap();
    assert_eq!((store.recovered(), all(&store)), (None, vec![7; 3 * B]));
}

#[test]
fn an_object_that_cannot_be_written_gets_no_journal() {
    let (directory, path) = file_with(&[7; 3 * B]);
    let object = Arc::new(FileStore::open(&path).unwrap());
    let refused = journal::open_file(object, &path, None, JournalOptions::default()).err().unwrap();
    assert!(refused.to_string().contains("read-only"), "{refused}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
