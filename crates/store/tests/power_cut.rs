//! The power goes, or a store fails, at any moment: the object has all of a transaction or nothing.

use std::collections::HashSet;
use std::sync::Arc;

use omnimap_store::conformance::check_write;
use omnimap_store::journal::{JournalOptions, Journaled};
use omnimap_store::{BackingStore, Failure, MemoryStore, PowerCut, PowerSupply, Result, StoreError, WriteAt};
use xxhash_rust::xxh3::xxh3_64;

const B: usize = 4096;
/// The least: images of the journal are copied all the time.
const OPTIONS: JournalOptions = JournalOptions { bytes_max: 0 };

#[derive(Debug, Clone, Copy)]
enum Step {
    /// At an offset, so many bytes, all of this value.
    Write(usize, usize, u8),
    /// Every second block from one on, so many, together.
    Scatter(usize, usize, u8),
    SetLen(usize),
    Sync,
}
use Step::{Scatter, SetLen, Sync, Write};

/// Ten times the work, when it is asked for.
fn long() -> usize {
    if std::env::var_os("OMNIMAP_LONG").is_some() { 10 } else { 1 }
}

fn memory(bytes: Vec<u8>) -> Arc<MemoryStore> {
    Arc::new(MemoryStore::writable("memory", bytes))
}

fn all(store: &dyn BackingStore) -> Result<Vec<u8>> {
    let mut bytes = vec![0; store.len() as usize];
    let got = store.read_at(0, &mut bytes)?;
    assert_eq!(got, bytes.len());
    Ok(bytes)
}

/// Applies a step to the naive model.
fn model(content: &mut Vec<u8>, step: Step) {
    match step {
        Write(offset, length, value) => content[offset..offset + length].fill(value),
        Scatter(first, count, value) => {
            scattered(first, count).for_each(|at| content[at..at + B].fill(value));
        }
        SetLen(length) => content.resize(length, 0),
        Sync => {}
    }
}

/// Where the blocks begin.
fn scattered(first: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| (first + 2 * i) * B)
}

fn write_scattered(store: &Journaled, first: usize, count: usize, value: u8) -> Result<()> {
    let bytes = [value; B];
    let writes: Vec<WriteAt<'_>> =
        scattered(first, count).map(|at| WriteAt { offset: at as u64, bytes: &bytes }).collect();
    let mut failure = Ok(());
    store.write_each(&writes, &mut |_, outcome| {
        if failure.is_ok() {
            failure = outcome;
        }
    });
    failure
}

fn do_step(store: &Journaled, step: Step) -> Result<()> {
    match step {
        Write(offset, length, value) => store.write_at(offset as u64, &vec![value; length]),
        Scatter(first, count, value) => write_scattered(store, first, count, value),
        SetLen(length) => store.set_len(length as u64),
        Sync => store.sync(),
    }
}

/// A history on two stores with one power supply, and the contents that it went through at its syncs.
struct History {
    supply: PowerSupply,
    /// What was there when a sync was asked for, and when that was; first what was there at first.
    asked: Vec<(usize, Vec<u8>)>,
    /// When a sync was answered, and which.
    answered: Vec<(usize, usize)>,
}

impl History {
    fn new(initial: &[u8]) -> (History, Arc<PowerCut>, Arc<PowerCut>) {
        let supply = PowerSupply::new();
        let stores = (supply.store("object", initial.to_vec()), supply.store("journal", Vec::new()));
        (History { supply, asked: vec![(0, initial.to_vec())], answered: vec![(0, 0)] }, stores.0, stores.1)
    }

    fn run(initial: &[u8], steps: &[Step]) -> History {
        let (mut history, object, journal) = History::new(initial);
        let store = Journaled::open(object, journal, OPTIONS).unwrap();
        let mut content = initial.to_vec();
        for step in steps {
            history.step(&store, &mut content, *step).unwrap();
            assert_eq!(all(&store).unwrap(), content);
        }
        history
    }

    fn step(&mut self, store: &Journaled, content: &mut Vec<u8>, step: Step) -> Result<()> {
        model(content, step);
        if matches!(step, Sync) {
            self.asked.push((self.supply.now(), content.clone()));
        }
        do_step(store, step)?;
        if matches!(step, Sync) {
            self.answered.push((self.supply.now(), self.asked.len() - 1));
        }
        Ok(())
    }

    /// The contents that may be there after a cut: that of the last sync that was answered, and of those asked since.
    fn allowed(&self, time: usize) -> &[(usize, Vec<u8>)] {
        let from = self.answered.iter().rev().find(|(at, _)| *at <= time).map_or(0, |(_, index)| *index);
        let to = self.asked.iter().rposition(|(at, _)| *at <= time).unwrap_or(0);
        &self.asked[from..=to]
    }

    /// Cuts at every time, and gives each image that may be found to `then`, with what recovery makes of it.
    fn check(&self, images_max: usize, mut then: impl FnMut(&[Vec<u8>], &[u8])) -> usize {
        let mut seen = HashSet::new();
        for time in 0..=self.supply.now() {
            let allowed = self.allowed(time);
            self.supply.each_image(time, images_max, time as u64, |images| {
                let sums = (xxh3_64(&images[0]), xxh3_64(&images[1]));
                if !seen.insert((sums, allowed.len(), allowed[0].0)) {
                    return;
                }
                let content = recovered(&images);
                assert!(
                    allowed.iter().any(|(_, a)| *a == content),
                    "cut after {time} of {}: {} are allowed, and it has {:?}",
                    self.supply.now(),
                    allowed.len(),
                    summary(&content)
                );
                then(&images, &content);
            });
        }
        seen.len()
    }
}

/// The first byte of each block, for messages.
fn summary(content: &[u8]) -> Vec<u8> {
    content.chunks(B).map(|block| block[0]).collect()
}

/// What is there after the next opening; in the object too.
fn recovered(images: &[Vec<u8>]) -> Vec<u8> {
    let object = memory(images[0].clone());
    let store = Journaled::open(object.clone(), memory(images[1].clone()), OPTIONS).unwrap();
    let content = all(&store).unwrap();
    assert_eq!(all(&*object).unwrap(), content);
    content
}

/// The power goes again: in the recovery, or when the program has begun again what it was doing, before its sync.
fn check_second_cut(images: &[Vec<u8>], content: &[u8], steps: &[Step], images_max: usize) {
    let supply = PowerSupply::new();
    let object = supply.store("object", images[0].clone());
    let journal = supply.store("journal", images[1].clone());
    let store = Journaled::open(object, journal, OPTIONS).unwrap();
    for step in steps {
        // What does not fit to the length is refused, and that is all right here.
        let _ = do_step(&store, *step);
    }
    for time in 0..=supply.now() {
        supply.each_image(time, images_max, time as u64, |images| {
            let again = recovered(&images);
            assert!(
                again == content,
                "second cut after {time}: {:?}, not {:?}",
                summary(&again),
                summary(content)
            );
        });
    }
}

fn initial() -> Vec<u8> {
    (0..3 * B + 100).map(|at| (at / B) as u8 + 100).collect()
}

/// Small transactions of every kind; all that may be found after a cut is looked at.
fn histories() -> Vec<Vec<Step>> {
    vec![
        vec![Write(0, B, 1), Sync],
        vec![Write(0, B, 1), Write(2 * B, B, 2), Sync],
        vec![Write(B - 10, 20, 3), Sync, Write(0, 2 * B, 4), Sync],
        vec![SetLen(B + 7), SetLen(4 * B), Write(3 * B, B, 5), Sync],
        vec![Write(B, B, 6), SetLen(B + 9), Sync, SetLen(3 * B), Sync],
        vec![Write(0, B, 7), Write(0, B, 8), Sync, Write(0, B, 9), Write(B, B, 9), Sync],
        vec![SetLen(0), Sync, SetLen(2 * B), Write(B, B, 10), Sync],
        vec![Scatter(0, 2, 13), Sync, Write(B, B, 14), Scatter(0, 2, 15), Sync],
        vec![
            Write(2 * B, B, 16),
            SetLen(5 * B),
            Scatter(0, 3, 17),
            Sync,
            Scatter(1, 2, 18),
            SetLen(2 * B),
            Sync,
        ],
        vec![Write(3 * B, 100, 11), SetLen(5 * B), Write(4 * B, B, 12), SetLen(4 * B + 1), Sync],
    ]
}

#[test]
fn a_store_with_a_power_supply_conforms() {
    let supply = PowerSupply::new();
    check_write(&*supply.store("object", vec![1; 10]));
    let options = JournalOptions::default();
    check_write(&Journaled::open(supply.store("a", vec![]), supply.store("b", vec![]), options).unwrap());
}

#[test]
fn y05_after_a_cut_at_any_time_a_transaction_is_there_wholly_or_not_at_all() {
    for steps in histories() {
        let history = History::run(&initial(), &steps);
        let looked_at = history.check(4000 * long(), |_, _| {});
        assert!(looked_at > 20, "{steps:?}: {looked_at}");
    }
}

#[test]
fn y05_a_second_cut_in_the_recovery_or_after_it_changes_nothing() {
    for steps in histories() {
        let history = History::run(&initial(), &steps);
        let mut number = 0;
        let again: Vec<Step> = steps.iter().copied().take_while(|s| !matches!(s, Sync)).collect();
        history.check(60 * long(), |images, content| {
            number += 1;
            if number % 7 == 0 || long() > 1 {
                check_second_cut(images, content, &again, 25 * long());
            }
        });
    }
}

/// A program that does again what it was doing when the power went, with other luck in what reached the disk.
#[test]
fn a_transaction_that_was_given_up_stays_so() {
    let steps = [Write(0, B, 1), Write(2 * B, B, 2), SetLen(3 * B), Sync];
    History::run(&initial(), &steps).check(300, |images, content| {
        if content == initial() {
            check_second_cut(images, content, &steps[..3], 12);
        }
    });
}

fn random_steps(seed: u64, count: usize) -> Vec<Step> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % n
    };
    let mut length = initial().len();
    let mut steps = Vec::new();
    for i in 0..count {
        steps.push(match below(10) {
            0 | 1 => Sync,
            2 => {
                length = below(5 * B);
                SetLen(length)
            }
            3 if length >= B => {
                let blocks = length / B;
                let count = 1 + below(blocks.div_ceil(2));
                let first = below(blocks - 2 * (count - 1));
                Scatter(first, count, i as u8)
            }
            4..=6 if length >= B => Write(below(length / B) * B, B, i as u8),
            _ if length > 0 => {
                let offset = below(length);
                Write(offset, 1 + below((length - offset).min(2 * B)), i as u8)
            }
            _ => Sync,
        });
    }
    steps
}

#[test]
fn y05_long_random_histories_cut_at_any_time() {
    for seed in 0..12 * long() as u64 {
        let steps = random_steps(seed, 40);
        History::run(&initial(), &steps).check(12, |_, _| {});
    }
}

/// What a program does after a sync has failed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Program {
    /// Asks again.
    AsksAgain,
    /// Writes again what it wrote since the last sync, as the contract says, and asks again.
    WritesAgain,
}

/// The whole pages that a step writes to.
fn pages(step: &Step) -> Vec<std::ops::Range<usize>> {
    match *step {
        Write(offset, length, _) => {
            let touched = offset / B * B..(offset + length).next_multiple_of(B);
            vec![touched]
        }
        Scatter(first, count, _) => scattered(first, count).map(|at| at..at + B).collect(),
        SetLen(_) | Sync => Vec::new(),
    }
}

/// Runs a history in which one operation fails. Nothing if the journal told that it has lost something.
fn run_with_failure(steps: &[Step], fails: usize, failure: Failure, program: Program) -> Option<History> {
    let (mut history, object, journal) = History::new(&initial());
    history.supply.fail_at(fails, failure);
    let store = Journaled::open(object, journal, OPTIONS).unwrap();
    let (mut content, mut since_sync) = (initial(), Vec::new());
    for step in steps {
        let outcome = history.step(&store, &mut content, *step);
        let Err(error) = outcome else {
            if matches!(step, Sync) {
                since_sync.clear();
            } else {
                since_sync.push(*step);
            }
            continue;
        };
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        if matches!(step, Sync) && program == Program::WritesAgain {
            for range in since_sync.iter().flat_map(pages) {
                let end = range.end.min(content.len());
                let bytes = content.get(range.start..end).unwrap_or(&[]);
                store.write_at(range.start.min(content.len()) as u64, bytes).expect("whole pages");
            }
        }
        since_sync.push(*step);
        match history.step(&store, &mut content, *step) {
            Ok(()) => {}
            // What the kernel forgot is not in the journal any more, and that is told, not committed.
            Err(StoreError::Corrupt { .. }) if failure == Failure::Forgotten => {
                assert_eq!(program, Program::AsksAgain);
                assert!(store.sync().is_err(), "and stays so");
                history.check(20, |_, _| {});
                return None;
            }
            Err(error) => panic!("{step:?} after the failure: {error}"),
        }
        assert_eq!(all(&store).unwrap(), content, "{step:?} after the failure");
    }
    assert_eq!(all(&store).unwrap(), content);
    Some(history)
}

#[test]
fn y05_every_operation_fails_once_and_a_sync_that_was_answered_holds() {
    for steps in histories() {
        let operations = History::run(&initial(), &steps).supply.operations();
        for fails in 0..operations {
            for failure in [Failure::Half, Failure::Forgotten] {
                for program in [Program::AsksAgain, Program::WritesAgain] {
                    if let Some(history) = run_with_failure(&steps, fails, failure, program) {
                        history.check(40 * long(), |_, _| {});
                    }
                }
            }
        }
    }
}

#[test]
fn random_histories_with_a_failure_anywhere() {
    for seed in 100..100 + 6 * long() as u64 {
        let mut steps = random_steps(seed, 16);
        steps.push(Sync);
        let operations = History::run(&initial(), &steps).supply.operations();
        for fails in 0..operations {
            let failure = if fails % 2 == 0 { Failure::Half } else { Failure::Forgotten };
            if let Some(history) = run_with_failure(&steps, fails, failure, Program::WritesAgain) {
                history.check(4, |_, _| {});
            }
        }
    }
}

#[test]
fn a_block_that_the_kernel_forgot_is_whole_again_when_it_is_written_again() {
    let (mut history, object, journal) = History::new(&initial());
    let store = Journaled::open(object, journal, OPTIONS).unwrap();
    let mut content = initial();
    history.step(&store, &mut content, Write(0, B, 1)).unwrap();
    history.step(&store, &mut content, Write(2 * B, B, 2)).unwrap();
    // The table, the record, and then the sync.
    history.supply.fail_at(history.supply.operations() + 2, Failure::Forgotten);
    history.step(&store, &mut content, Sync).unwrap_err();
    for _ in 0..2 {
        let told = store.sync().unwrap_err();
        assert!(matches!(&told, StoreError::Corrupt { what } if what.contains("at 0")), "{told}");
    }
    assert!(store.read_at(0, &mut [0; 10]).is_err(), "no wrong bytes");
    history.step(&store, &mut content, Write(0, B, 1)).unwrap();
    assert!(matches!(&store.sync(), Err(StoreError::Corrupt { what }) if what.contains("at 8192")));
    history.step(&store, &mut content, Write(2 * B, B, 2)).unwrap();
    history.step(&store, &mut content, Sync).unwrap();
    history.check(200, |_, _| {});
}

/// The object's sync fails, and the program goes on with other bytes: the slots of what is committed must stay.
#[test]
fn y05_what_is_committed_is_applied_before_its_blocks_are_written_again() {
    let committed = [Write(0, B, 1), Write(2 * B, B, 2), Sync];
    // Last are the object's sync, and the mark that the journal is empty.
    let sync = History::run(&initial(), &committed).supply.operations() - 2;
    for failure in [Failure::Half, Failure::Forgotten] {
        let (mut history, object, journal) = History::new(&initial());
        history.supply.fail_at(sync, failure);
        let store = Journaled::open(object.clone(), journal, OPTIONS).unwrap();
        let mut content = initial();
        for step in &committed[..2] {
            history.step(&store, &mut content, *step).unwrap();
        }
        history.step(&store, &mut content, Sync).unwrap_err();
        let after_sync = content.clone();
        for step in [Write(0, B, 3), Write(B, B, 4)] {
            history.step(&store, &mut content, step).unwrap();
            assert!(all(&*object).unwrap() == after_sync, "{failure:?}");
            assert!(all(&store).unwrap() == content, "{failure:?}");
        }
        history.check(200, |_, _| {});
        history.step(&store, &mut content, Sync).unwrap();
        history.check(200, |_, _| {});
    }
}

/// The recovery itself fails once, at each of its operations; the next opening finishes it.
#[test]
fn a_recovery_that_fails_is_done_again() {
    let steps = [Write(0, B, 1), Write(2 * B, B, 2), SetLen(B), SetLen(4 * B), Write(3 * B, B, 3), Sync];
    History::run(&initial(), &steps).check(30, |images, content| {
        for fails in 0.. {
            let supply = PowerSupply::new();
            let object = supply.store("object", images[0].clone());
            let journal = supply.store("journal", images[1].clone());
            supply.fail_at(fails, if fails % 2 == 0 { Failure::Half } else { Failure::Forgotten });
            let outcome = Journaled::open(object.clone(), journal.clone(), OPTIONS);
            if outcome.is_ok() {
                break;
            }
            for time in 0..=supply.now() {
                supply.each_image(time, 6, time as u64, |images| assert!(recovered(&images) == content));
            }
            let store = Journaled::open(object, journal, OPTIONS).unwrap();
            assert!(all(&store).unwrap() == content, "after operation {fails} failed");
        }
    });
}
