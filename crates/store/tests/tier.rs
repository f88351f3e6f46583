//! The disk tier: what it keeps, what it finds again, and what it does not believe.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use omnimap_store::{BackingStore, Counting, DiskTier, MemoryStore, ReadAt, Result, Version, conformance};
use omnimap_testkit::{Prng, pattern, within};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;
const LENGTH: u64 = 5 * MIB + 1234;

/// An object far away, of a version.
struct Far {
    bytes: MemoryStore,
    version: &'static str,
}

impl BackingStore for Far {
    fn name(&self) -> &str {
        "far away"
    }
    fn len(&self) -> u64 {
        self.bytes.len()
    }
    fn version(&self) -> Option<Version> {
        Some(Version::new(self.version))
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.bytes.read_at(offset, into)
    }
}

fn far(version: &'static str, shift: u64) -> Arc<Counting> {
    let bytes = (0..LENGTH).map(|at| pattern(at + shift)).collect::<Vec<u8>>();
    Arc::new(Counting::new(Arc::new(Far { bytes: MemoryStore::new("bytes", bytes), version })))
}

fn read_all(store: &dyn BackingStore) -> Vec<u8> {
    let mut bytes = vec![0; store.len() as usize];
    assert_eq!(store.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn is_right(bytes: &[u8], shift: u64) -> bool {
    bytes.iter().zip(shift..).all(|(byte, at)| *byte == pattern(at))
}

/// The files with bytes of objects.
fn spans(directory: &Path) -> Vec<PathBuf> {
    let inside = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    inside(directory.into())
        .filter(|p| p.is_dir() && !p.ends_with("users"))
        .flat_map(inside)
        .filter(|p| p.is_file())
        .collect()
}

fn bytes_of(directory: &Path) -> u64 {
    let size = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.size().max(meta.blocks() * 512));
    spans(directory).iter().map(size).sum()
}

#[test]
fn a_store_behind_the_tier_is_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let tier = DiskTier::open(directory.path(), 64 * MIB).unwrap();
    for _ in 0..2 {
        conformance::check_read(&*tier.before(far("1", 0)), pattern);
    }
}

#[test]
fn the_second_run_fetches_nothing_and_another_version_everything() {
    let directory = tempfile::tempdir().unwrap();
    for (version, shift, fetched) in
        [("1", 0, LENGTH), ("1", 0, 0), ("2", 9, LENGTH), ("1", 0, 0), ("2", 9, 0)]
    {
        // A tier that is opened anew each time, as by another process.
        let tier = DiskTier::open(directory.path(), 64 * MIB).unwrap();
        let far = far(version, shift);
        let bytes = read_all(&*tier.before(far.clone()));
        assert!(is_right(&bytes, shift));
        assert_eq!(far.counts().bytes_read, fetched, "of version {version}");
    }
}

#[test]
fn only_what_is_missing_is_fetched_in_whole_pages() {
    let directory = tempfile::tempdir().unwrap();
    let tier = DiskTier::open(directory.path(), 64 * MIB).unwrap();
    let far = far("1", 0);
    let store = tier.before(far.clone());
    let mut bytes = [0; 10];
    store.read_at(4090, &mut bytes).unwrap();
    assert_eq!(far.counts().bytes_read, 8192);
    let mut bytes = [0; 20_000];
    store.read_at(0, &mut bytes).unwrap();
    assert!(is_right(&bytes, 0));
    assert_eq!(far.counts().bytes_read, 20_480);
    let mut into = vec![vec![0; 4096]; 4];
    let offsets = [0, 16_384, 40_960, LENGTH - 100];
    let mut reads: Vec<ReadAt<'_>> =
        into.iter_mut().zip(offsets).map(|(into, offset)| ReadAt { offset, into }).collect();
    let mut told = vec![0; 4];
    store.read_each(&mut reads, &mut |number, outcome| told[number] = outcome.unwrap());
    assert_eq!(told, [4096, 4096, 4096, 100]);
    for ((into, offset), count) in into.iter().zip(offsets).zip(told) {
        assert!(is_right(&into[..count], offset));
    }
    assert_eq!(far.counts().bytes_read, 20_480 + 4096 + LENGTH % 4096);
}

#[test]
fn what_is_damaged_or_foreign_is_a_miss() {
    type Damage = fn(&Path, &mut Prng);
    let damages: [(&str, Damage); 6] = [
        ("a byte is another", |path, random| {
            let mut bytes = fs::read(path).unwrap();
            for _ in 0..20 {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            fs::write(path, bytes).unwrap();
        }),
        ("it is cut", |path, random| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(random.below(file.metadata().unwrap().len())).unwrap();
        }),
        ("it is empty", |path, _| fs::write(path, []).unwrap()),
        ("it is no file", |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("it is another's", |path, _| {
            let other =
                spans(path.parent().unwrap().parent().unwrap()).into_iter().find(|p| p != path).unwrap();
            fs::copy(other, path).unwrap();
        }),
        ("it is nonsense", |path, random| {
            let bytes: Vec<u8> = (0..100_000).map(|_| random.next_u64() as u8).collect();
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let directory = tempfile::tempdir().unwrap();
        let mut random = Prng::new(3);
        let tier = DiskTier::open(directory.path(), 64 * MIB).unwrap();
        read_all(&*tier.before(far("1", 0)));
        for round in 0..5 {
            for path in spans(directory.path()) {
                damage(&path, &mut random);
            }
            fs::write(directory.path().join("usage"), b"damaged").unwrap();
            let bytes = read_all(&*tier.before(far("1", 0)));
            assert!(is_right(&bytes, 0), "{what}, round {round}");
        }
    }
}

#[test]
fn the_bound_is_kept_and_what_was_used_longest_ago_goes() {
    let directory = tempfile::tempdir().unwrap();
    let bound = 16 * MIB;
    let others = directory.path().join("not-ours");
    fs::write(&others, b"mine").unwrap();
    let tier = DiskTier::open(directory.path(), bound).unwrap();
    let versions = ["1", "2", "3", "4", "5", "6", "7", "8"];
    for (version, shift) in versions.into_iter().zip(0..) {
        assert!(is_right(&read_all(&*tier.before(far(version, shift))), shift));
        assert!(bytes_of(directory.path()) <= bound, "{}", bytes_of(directory.path()));
        assert!(tier.bytes_used().unwrap() <= bound);
    }
    assert!(bytes_of(directory.path()) > bound / 2, "it is used");
    let newest = far("8", 7);
    read_all(&*tier.before(newest.clone()));
    assert_eq!(newest.counts().bytes_read, 0, "the newest stays");
    assert_eq!(fs::read(others).unwrap(), b"mine");
}

#[test]
fn many_small_reads_keep_the_bound_too() {
    let directory = tempfile::tempdir().unwrap();
    let bound = 8 * MIB;
    let mut random = Prng::new(7);
    let stores: Vec<_> = ["1", "2", "3", "4"].into_iter().zip(0..).collect();
    let tier = DiskTier::open(directory.path(), bound).unwrap();
    let stores: Vec<_> = stores.into_iter().map(|(v, shift)| (tier.before(far(v, shift)), shift)).collect();
    for _ in 0..8000 {
        let (store, shift) = &stores[random.below(4) as usize];
        let offset = random.below(LENGTH - 100);
        let mut bytes = [0; 100];
        store.read_at(offset, &mut bytes).unwrap();
        assert!(is_right(&bytes, offset + shift));
    }
    assert!(bytes_of(directory.path()) <= bound, "{}", bytes_of(directory.path()));
}

#[test]
fn the_bound_counts_what_other_users_may_write_still() {
    let directory = tempfile::tempdir().unwrap();
    let bound = 8 * MIB;
    // Each takes some of the room when it writes first, to use it by and by.
    let tiers: Vec<_> = (0..40).map(|_| DiskTier::open(directory.path(), bound).unwrap()).collect();
    for tier in &tiers {
        assert!(is_right(&read_all(&*tier.before(far("1", 0)))[..100], 0));
        assert!(tier.bytes_used().unwrap() <= bound, "{}", tier.bytes_used().unwrap());
    }
    assert!(bytes_of(directory.path()) <= bound, "{}", bytes_of(directory.path()));
}

/// In containers that share the directory there may be processes of the same number.
#[test]
fn a_process_of_the_same_number_elsewhere_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    fs::create_dir(&users).unwrap();
    let taken = (0..200).map(|number| users.join(format!("{}-{number}", std::process::id())));
    let theirs: Vec<_> = taken.map(|path| fs::File::create(path).unwrap()).collect();
    theirs.iter().for_each(|file| file.lock().unwrap());
    let tier = DiskTier::open(directory.path(), 64 * MIB).unwrap();
    assert!(is_right(&read_all(&*tier.before(far("1", 0)))[..100], 0));
    drop(tier);
    assert_eq!(fs::read_dir(&users).unwrap().count(), theirs.len(), "and theirs are still there");
}

#[test]
fn a_store_of_no_version_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let tier = DiskTier::open(directory.path(), 64 * MIB).unwrap();
    // What may be written has no version.
    let store = tier.before(Arc::new(MemoryStore::writable("memory", vec![1; 100_000])));
    read_all(&*store);
    assert!(spans(directory.path()).is_empty());
}

/// Several processes fill one directory at the same time and are killed in the midst of it.
#[test]
fn kills_while_it_is_filled_leave_no_wrong_byte() {
    let name = "kills_while_it_is_filled_leave_no_wrong_byte";
    let rounds = if std::env::var_os("OMNIMAP_LONG").is_some() { 100 } else { 10 };
    let bound = 12 * MIB;
    if let Some(directory) = std::env::var_os("OMNIMAP_TIER_DIRECTORY") {
        let mut random = Prng::new(u64::from(std::process::id()));
        let tier = DiskTier::open(directory, bound).unwrap();
        let stores =
            [("1", 0), ("2", 100), ("3", 5000)].map(|(v, shift)| (tier.before(far(v, shift)), shift));
        loop {
            let (store, shift) = &stores[random.below(3) as usize];
            let offset = random.below(LENGTH);
            let mut bytes = vec![0; random.below(300_000) as usize];
            let count = store.read_at(offset, &mut bytes).unwrap();
            assert!(is_right(&bytes[..count], offset + shift), "in a process that others were killed beside");
        }
    }
    within(LIMIT, move || {
        let directory = tempfile::tempdir().unwrap();
        let mut random = Prng::new(11);
        let start = || {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env("OMNIMAP_TIER_DIRECTORY", directory.path())
                .stderr(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        };
        for round in 0..rounds {
            let mut children = [start(), start()];
            std::thread::sleep(Duration::from_millis(30 + random.below(150)));
            for child in &mut children {
                assert!(child.try_wait().unwrap().is_none(), "round {round}: it found something wrong");
                child.kill().unwrap();
                child.wait().unwrap();
            }
            assert!(bytes_of(directory.path()) <= bound, "round {round}: {}", bytes_of(directory.path()));
        }
        let tier = DiskTier::open(directory.path(), bound).unwrap();
        for (version, shift) in [("1", 0), ("2", 100), ("3", 5000)] {
            assert!(is_right(&read_all(&*tier.before(far(version, shift))), shift));
        }
    });
}
