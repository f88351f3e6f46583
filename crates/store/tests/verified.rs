//! What `Verified` notices, and what it must not take for a change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use omnimap_store::conformance::{check_read, check_write};
use omnimap_store::{
    BackingStore, Decorator, Faulty, MemoryStore, Misbehaviour, ReadAt, Result, StoreError, Verified, WriteAt,
};

const BLOCK: u64 = Verified::BLOCK_BYTES;
const LIMIT: Duration = Duration::from_secs(20);

/// A verified store, one that may misbehave beneath it, and the memory that others may write.
struct Stack {
    verified: Arc<Verified>,
    faulty: Arc<Faulty>,
    memory: Arc<MemoryStore>,
}

fn stack(length: u64) -> Stack {
    let memory = Arc::new(MemoryStore::writable("memory", vec![7; length as usize]));
    let faulty = Arc::new(Faulty::new(memory.clone()));
    Stack { verified: Arc::new(Verified::new(faulty.clone())), faulty, memory }
}

impl Stack {
    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        let got = self.verified.read_at(offset, &mut bytes)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    fn write(&self, offset: u64, length: u64, byte: u8) -> Result<()> {
        self.verified.write_at(offset, &vec![byte; length as usize])
    }

    /// Somebody else writes one byte.
    fn tamper(&self, offset: u64) {
        self.memory.write_at(offset, &[99]).unwrap();
    }

    fn is_changed(&self, block: u64) -> bool {
        let outcome = self.read(block * BLOCK, BLOCK);
        assert!(matches!(outcome, Ok(_) | Err(StoreError::Changed { .. })), "{outcome:?}");
        outcome.is_err()
    }
}

#[test]
fn reads_made_together_are_checked_each() {
    let s = stack(8 * BLOCK);
    assert_eq!(s.read(0, 8 * BLOCK).unwrap().len() as u64, 8 * BLOCK);
    s.tamper(3 * BLOCK + 5);
    // Whole blocks, and then also a part of one.
    for third in [(3 * BLOCK, BLOCK), (3 * BLOCK, 100)] {
        let places = [(5 * BLOCK, 2 * BLOCK), (0, BLOCK), third];
        let mut buffers = places.map(|(_, length)| vec![0; length as usize]);
        let mut reads: Vec<ReadAt<'_>> = places
            .iter()
            .zip(&mut buffers)
            .map(|((offset, _), into)| ReadAt { offset: *offset, into })
            .collect();
        let mut outcomes = [None, None, None];
        s.verified.read_each(&mut reads, &mut |number, outcome| {
            assert!(outcomes[number].replace(outcome).is_none(), "{number} was told before");
        });
        let [a, b, c] = outcomes.map(Option::unwrap);
        assert_eq!((a.unwrap() as u64, b.unwrap() as u64), (2 * BLOCK, BLOCK));
        assert!(matches!(c, Err(StoreError::Changed { .. })), "{c:?}");
    }
}

#[test]
fn bytes_that_were_written_must_come_back() {
    let s = stack(10 * BLOCK + 100);
    s.write(BLOCK, 3 * BLOCK, 1).unwrap();
    s.write(9 * BLOCK, BLOCK + 100, 2).unwrap();
    assert_eq!(s.read(BLOCK, 3 * BLOCK).unwrap(), vec![1; 3 * BLOCK as usize]);
    assert_eq!(s.read(9 * BLOCK, 2 * BLOCK).unwrap(), vec![2; BLOCK as usize + 100]);
    for block in [1, 3, 9, 10] {
        s.tamper(block * BLOCK + 50);
        assert!(s.is_changed(block), "block {block}");
        assert!(s.is_changed(block), "block {block}: and stays so");
    }
    assert!(!s.is_changed(2), "a block beside them");
}

#[test]
fn bytes_that_were_never_read_must_come_as_they_were_written() {
    for tampered in [0, 2 * BLOCK + 5, 3 * BLOCK + 99] {
        let s = stack(3 * BLOCK + 100);
        s.write(0, 3 * BLOCK + 100, 1).unwrap();
        s.tamper(tampered);
        let outcome = s.read(0, 4 * BLOCK);
        let at = (tampered - tampered % BLOCK).to_string();
        assert!(matches!(&outcome, Err(StoreError::Changed { how }) if how.contains(&at)), "{outcome:?}");
    }
}

/// ```text
/// blocks   0   1   2   3(short)
/// written    ========|==
/// ```
#[test]
fn blocks_written_in_part_are_forgotten() {
    let s = stack(3 * BLOCK + 100);
    s.read(0, 4 * BLOCK).unwrap();
    s.write(BLOCK / 2, 2 * BLOCK + BLOCK / 2 + 50, 1).unwrap();
    for (block, changed) in [(0, false), (1, true), (2, true), (3, false)] {
        s.tamper(block * BLOCK + 20);
        assert_eq!(s.is_changed(block), changed, "block {block}");
    }
}

#[test]
fn a_write_that_fails_forgets_its_blocks_and_no_other() {
    for misbehaviour in [Misbehaviour::Fail, Misbehaviour::Short, Misbehaviour::Panic] {
        let s = stack(4 * BLOCK);
        s.read(0, 4 * BLOCK).unwrap();
        s.faulty.on_write(0..u64::MAX, misbehaviour, 1);
        let write = || s.write(BLOCK, 2 * BLOCK, 1);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(write));
        assert!(!matches!(outcome, Ok(Ok(()))), "{misbehaviour:?}");
        // Any mixture may be there.
        (0..4).for_each(|block| s.tamper(block * BLOCK));
        let changed: Vec<bool> = (0..4).map(|block| s.is_changed(block)).collect();
        assert_eq!(changed, [true, false, false, true], "{misbehaviour:?}");
        // It is no longer under way, so this is remembered.
        s.write(BLOCK, BLOCK, 3).unwrap();
        s.tamper(BLOCK);
        assert!(s.is_changed(1), "{misbehaviour:?}: a write afterwards");
    }
}

#[test]
fn writes_of_different_blocks_run_in_parallel_and_are_all_remembered() {
    const WRITES: u64 = 8;
    let s = stack(WRITES * BLOCK);
    s.faulty.on_write(0..u64::MAX, Misbehaviour::Hold, WRITES);
    thread::scope(|scope| {
        for block in 0..WRITES {
            let s = &s;
            scope.spawn(move || s.write(block * BLOCK, BLOCK, block as u8).unwrap());
        }
        let all = s.faulty.wait_until_held(WRITES, LIMIT);
        s.faulty.heal();
        assert!(all, "all of them are with the store together");
    });
    for block in 0..WRITES {
        assert_eq!(s.read(block * BLOCK, BLOCK).unwrap(), vec![block as u8; BLOCK as usize]);
        s.tamper(block * BLOCK);
        assert!(s.is_changed(block), "block {block}");
    }
}

/// Which of the two the block holds is the store's affair.
#[test]
fn a_block_that_two_write_at_the_same_time_is_forgotten() {
    let s = stack(3 * BLOCK);
    s.faulty.on_write(0..u64::MAX, Misbehaviour::Hold, 2);
    thread::scope(|scope| {
        for block in [0, 1] {
            let s = &s;
            scope.spawn(move || s.write(block * BLOCK, 2 * BLOCK, block as u8).unwrap());
        }
        let both = s.faulty.wait_until_held(2, LIMIT);
        s.faulty.heal();
        assert!(both);
    });
    (0..3).for_each(|block| s.tamper(block * BLOCK));
    assert_eq!([0, 1, 2].map(|block| s.is_changed(block)), [true, false, true]);
}

/// The read is held before the bytes are taken, while a write of block 1 comes and goes.
#[test]
fn a_read_around_a_write_checks_the_other_blocks_only() {
    for tampered in [None, Some(0), Some(2)] {
        let s = stack(3 * BLOCK);
        s.read(0, 3 * BLOCK).unwrap();
        s.faulty.on_read(0..u64::MAX, Misbehaviour::Hold, 1);
        let outcome = thread::scope(|scope| {
            let read = scope.spawn(|| s.read(0, 3 * BLOCK));
            assert!(s.faulty.wait_until_held(1, LIMIT));
            s.write(BLOCK, BLOCK, 1).unwrap();
            // Not what was written, as if the read had come between.
            s.tamper(BLOCK);
            if let Some(block) = tampered {
                s.tamper(block * BLOCK);
            }
            s.faulty.heal();
            read.join().unwrap()
        });
        assert_eq!(outcome.is_err(), tampered.is_some(), "{tampered:?}: {outcome:?}");
        assert!(s.is_changed(1), "what was written is known, and not what the read saw");
    }
}

/// The write is held before the bytes are given, while a read of the old ones comes and goes.
#[test]
fn a_read_inside_a_write_is_neither_compared_nor_remembered() {
    let s = stack(2 * BLOCK);
    s.faulty.on_write(0..u64::MAX, Misbehaviour::Hold, 1);
    thread::scope(|scope| {
        let write = scope.spawn(|| s.write(0, BLOCK + 10, 1));
        assert!(s.faulty.wait_until_held(1, LIMIT));
        assert_eq!(s.read(0, 2 * BLOCK).unwrap(), vec![7; 2 * BLOCK as usize]);
        s.faulty.heal();
        write.join().unwrap().unwrap();
    });
    assert!(!s.is_changed(0), "it is the new bytes that are known");
    assert!(!s.is_changed(1), "and those beside them were forgotten, not known as they were");
}

#[test]
fn writes_that_are_made_together_are_remembered_and_those_that_fail_forgotten() {
    let s = stack(6 * BLOCK);
    s.read(0, 6 * BLOCK).unwrap();
    s.faulty.on_write(2 * BLOCK..3 * BLOCK, Misbehaviour::Fail, 1);
    let bytes = [1; BLOCK as usize];
    let writes = [0, 2, 4].map(|block| WriteAt { offset: block * BLOCK, bytes: &bytes });
    let mut outcomes = Vec::new();
    s.verified.write_each(&writes, &mut |number, outcome| outcomes.push((number, outcome.is_ok())));
    assert_eq!(outcomes, [(0, true), (1, false), (2, true)]);
    assert_eq!(s.read(4 * BLOCK, BLOCK).unwrap(), bytes, "it is the new bytes that are known");
    s.tamper(0);
    s.tamper(2 * BLOCK);
    s.tamper(5 * BLOCK);
    assert!(s.is_changed(0) && s.is_changed(5));
    assert!(!s.is_changed(2), "nobody knows what it holds");
}

/// A store whose writes are not one step: what reads see meanwhile is old, new or mixed.
struct Torn(MemoryStore);

impl Decorator for Torn {
    fn inner(&self) -> &dyn BackingStore {
        &self.0
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        for (i, part) in bytes.chunks(1000).enumerate() {
            self.0.write_at(offset + i as u64 * 1000, part)?;
            thread::yield_now();
        }
        Ok(())
    }
}

#[test]
fn reads_that_race_with_writes_find_no_change() {
    const BLOCKS: u64 = 8;
    let torn = Torn(MemoryStore::writable("torn", vec![0; (BLOCKS * BLOCK) as usize]));
    let store: Arc<dyn BackingStore> = Arc::new(Verified::new(Arc::new(torn)));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    for i in 0..2000u64 {
                        let block = (i * 5 + writer * 3) % (BLOCKS - 1);
                        let offset = block * BLOCK + if i % 4 == 3 { 100 } else { 0 };
                        store.write_at(offset, &vec![(i + writer) as u8; BLOCK as usize]).unwrap();
                    }
                })
            })
            .collect();
        for reader in 0..2u64 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                let mut i = reader;
                while !done.load(Ordering::Relaxed) {
                    i += 1;
                    let offset = i * 2777 % (BLOCKS * BLOCK);
                    let mut bytes = vec![0; (i % 3 * BLOCK) as usize + 100];
                    store.read_at(offset - if i % 2 == 0 { offset % BLOCK } else { 0 }, &mut bytes).unwrap();
                }
            });
        }
        let outcomes: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });
    store.read_at(0, &mut vec![0; (BLOCKS * BLOCK) as usize]).unwrap();
}

#[test]
fn another_length_forgets_what_lies_beyond_and_the_block_that_held_the_end() {
    for length in [BLOCK / 2, 2 * BLOCK + 10, 5 * BLOCK] {
        let s = stack(2 * BLOCK + 100);
        s.read(0, 3 * BLOCK).unwrap();
        s.verified.set_len(length).unwrap();
        assert_eq!(s.read(0, 6 * BLOCK).unwrap().len() as u64, length, "no change by others");
        s.verified.set_len(2 * BLOCK + 100).unwrap();
        s.read(0, 3 * BLOCK).unwrap();
    }
    let s = stack(2 * BLOCK + 100);
    s.read(0, 3 * BLOCK).unwrap();
    s.verified.set_len(3 * BLOCK).unwrap();
    s.tamper(BLOCK);
    assert!(s.is_changed(1), "what lies before the end is still known");
}

#[test]
fn a_read_around_another_length_remembers_nothing() {
    let s = stack(BLOCK + 100);
    s.faulty.on_read(0..u64::MAX, Misbehaviour::Hold, 1);
    thread::scope(|scope| {
        // Not from the beginning of a block: it asks for exactly what there was, to the end of the last one.
        let read = scope.spawn(|| s.read(10, BLOCK));
        assert!(s.faulty.wait_until_held(1, LIMIT));
        s.verified.set_len(2 * BLOCK).unwrap();
        s.faulty.heal();
        read.join().unwrap().unwrap();
    });
    assert!(!s.is_changed(1), "the last block is longer now");
}

#[test]
fn refresh_forgets_everything_and_is_passed_on() {
    struct Refused(Arc<dyn BackingStore>, AtomicBool);
    impl Decorator for Refused {
        fn inner(&self) -> &dyn BackingStore {
            &self.0
        }
        fn refresh(&self) -> Result<()> {
            let refused = StoreError::Corrupt { what: "as the test says".to_owned() };
            if self.1.load(Ordering::Relaxed) { Err(refused) } else { Ok(()) }
        }
    }
    let s = stack(3 * BLOCK);
    let inner = Arc::new(Refused(s.memory.clone(), AtomicBool::new(true)));
    let s = Stack { verified: Arc::new(Verified::new(inner.clone())), ..s };
    s.read(0, 3 * BLOCK).unwrap();
    s.tamper(0);
    assert!(s.is_changed(0));
    assert!(s.verified.refresh().is_err(), "it is asked");
    assert!(s.is_changed(0), "and its bytes are not taken");
    inner.1.store(false, Ordering::Relaxed);
    s.verified.refresh().unwrap();
    assert!(!s.is_changed(0));
    s.tamper(BLOCK);
    assert!(!s.is_changed(1));
    s.tamper(1);
    assert!(s.is_changed(0), "from then on the new bytes are those to come back");
}

#[test]
fn it_conforms_over_a_store_that_can_be_written() {
    let s = stack(10);
    check_write(&*s.verified);
    let s = stack(70_000);
    check_read(&*s.verified, |_| 7);
}
