//! Large pages of paged objects: made where they help, given up before a part of one goes.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use omnimap::posix::{Advice, MapFlags, Object, Prot, Source, madvise, mmap, munmap};
use omnimap::{Cache, FaultMode, MapOptions};
use omnimap_testkit::{Prng, in_child, pattern, pattern_store, skip, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const LARGE: u64 = 2 * MIB;

fn skip_without_large_pages() -> bool {
    if skip_without_mappings() {
        return true;
    }
    let setting = |name| std::fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}"));
    let has = setting("hpage_pmd_size").is_ok_and(|bytes| bytes.trim() == LARGE.to_string())
        && setting("shmem_enabled")
            .is_ok_and(|chosen| chosen.contains("[never]") || chosen.contains("[advise]"));
    if !has {
        skip("no huge pages of 2 MiB, or the kernel makes them of shared memory by itself");
        return true;
    }
    // Guard pages are of single pages.
    Cache::new(MIB).unwrap().fault_mode() == FaultMode::Trap
}

/// Bytes that this process is shown by large pages of shared memory.
fn shown_by_large_pages() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Figures of the process, and forks of it, are for one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until they have been made by themselves.
fn wait_for_large_pages(cache: &Cache, count: u64) {
    let begin = Instant::now();
    while cache.stats().large_pages_made < count {
        assert!(begin.elapsed() < LIMIT / 2, "{:?}", cache.stats());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_pattern(bytes: &[u8]) -> bool {
    (0..).zip(bytes).all(|(at, byte)| *byte == pattern(at))
}

#[test]
fn what_is_in_use_is_shown_by_large_pages_until_somebody_wants_room() {
    if skip_without_large_pages() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let cache = Cache::new(32 * MIB).unwrap();
        let mapping = MapOptions::new().cache(&cache).map(pattern_store(16 * MIB + 5)).unwrap();
        assert!(is_pattern(&mapping));
        wait_for_large_pages(&cache, 8);
        assert!(is_pattern(&mapping));
        assert_eq!(shown_by_large_pages(), 16 * MIB);
        // Three times what there is room for, with the first always in use.
        let other = MapOptions::new().cache(&cache).map(pattern_store(96 * MIB)).unwrap();
        let mut random = Prng::new(3);
        for at in (0..96 * MIB).step_by(4096) {
            assert_eq!(other[at as usize], pattern(at));
            let at = random.below(MIB);
            assert_eq!(mapping[at as usize], pattern(at));
            if at.is_multiple_of(64) {
                let resident =
                    mapping.kernel_resident_bytes().unwrap() + other.kernel_resident_bytes().unwrap();
                assert!(resident <= 32 * MIB, "{resident}");
            }
        }
        assert!(cache.stats().large_pages_split > 0);
        assert!(is_pattern(&mapping));
    });
}

#[test]
fn who_needs_the_first_page_waits_for_few_large_ones_to_be_split() {
    if skip_without_large_pages() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let cache = Cache::new(128 * MIB).unwrap();
        let mapping = MapOptions::new().cache(&cache).map(pattern_store(126 * MIB)).unwrap();
        assert!(is_pattern(&mapping));
        wait_for_large_pages(&cache, 63);
        let other = MapOptions::new().cache(&cache).readahead_max(0).map(pattern_store(4 * MIB)).unwrap();
        let needed_room = (0..4 * MIB).step_by(4096).any(|at| {
            assert_eq!(other[at as usize], pattern(at));
            cache.stats().pages_evicted > 0
        });
        assert!(needed_room);
        let split = cache.stats().large_pages_split;
        assert!((1..16).contains(&split), "{split} of 63");
    });
}

#[test]
fn large_pages_can_be_refused() {
    if skip_without_large_pages() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let cache = Cache::new(32 * MIB).unwrap();
        let in_use = |large| {
            let mapping =
                MapOptions::new().cache(&cache).large_pages(large).map(pattern_store(4 * MIB)).unwrap();
            assert!(is_pattern(&mapping));
            mapping
        };
        let (_without, _with) = (in_use(false), in_use(true));
        wait_for_large_pages(&cache, 2);
        // A few more ticks.
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(cache.stats().large_pages_made, 2, "of the one that may");
    });
}

/// An object of 4 MiB, mapped and in memory.
fn mapped(cache: &Cache) -> (Arc<Object>, *mut c_void) {
    let object = MapOptions::new().cache(cache).object(Arc::new(pattern_store(2 * LARGE))).unwrap();
    let start = map(&object);
    (object, start)
}

fn map(object: &Arc<Object>) -> *mut c_void {
    let (null, bytes) = (std::ptr::null_mut(), 2 * LARGE as usize);
    // SAFETY: a new mapping at a place of the kernel's choice.
    let start =
        unsafe { mmap(null, bytes, Prot::READ, MapFlags::SHARED, Source::Object(object), 0) }.unwrap();
    assert!(is_pattern(slice(start)));
    start
}

fn slice<'a>(start: *mut c_void) -> &'a [u8] {
    // SAFETY: mapped by `mapped`, and unmapped at a test's end.
    unsafe { std::slice::from_raw_parts(start.cast(), 2 * LARGE as usize) }
}

fn advise(start: *mut c_void, offset: u64, length: u64, advice: Advice) -> omnimap::posix::Result<()> {
    let start = start.wrapping_byte_add(offset as usize);
    // SAFETY: the advices of these tests change no byte.
    unsafe { madvise(start, length as usize, advice) }
}

#[test]
fn m12_a_page_of_a_large_one_goes_alone() {
    if skip_without_large_pages() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let cache = Cache::new(8 * MIB).unwrap();
        if cache.fault_mode() != FaultMode::Worker {
            return; // As all mappings of the family.
        }
        let (object, start) = mapped(&cache);
        advise(start, 0, 2 * LARGE, Advice::COLLAPSE).unwrap();
        assert_eq!(cache.stats().large_pages_made, 2);
        assert!(is_pattern(slice(start)));
        let page = omnimap::machine::page_bytes();
        for number in [7, 8, 300] {
            advise(start, number * page, page, Advice::PAGEOUT).unwrap();
        }
        assert_eq!(object.resident_bytes().unwrap(), 2 * LARGE - 3 * page);
        assert_eq!(cache.stats().large_pages_split, 1);
        assert!(is_pattern(slice(start)));
        // And back.
        advise(start, 0, 2 * LARGE, Advice::COLLAPSE).unwrap();
        assert_eq!(cache.stats().large_pages_made, 3);
        advise(start, 0, 2 * LARGE, Advice::NOHUGEPAGE).unwrap();
        assert_eq!(cache.stats().large_pages_split, 3);
        assert_eq!(advise(start, 0, 2 * LARGE, Advice::COLLAPSE).unwrap_err().0, libc::EINVAL);
        assert!(is_pattern(slice(start)));
        assert_eq!(object.resident_bytes().unwrap(), 2 * LARGE);
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start, 2 * LARGE as usize) }.unwrap();
    });
}

#[test]
fn m13_a_page_that_is_pinned_or_locked_keeps_no_large_page() {
    if skip_without_large_pages() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let cache = Cache::new(32 * MIB).unwrap();
        let mapping = MapOptions::new().cache(&cache).map(pattern_store(4 * MIB)).unwrap();
        assert!(is_pattern(&mapping));
        wait_for_large_pages(&cache, 2);
        let page = omnimap::machine::page_bytes();
        let pin = mapping.pin(5 * page..5 * page + 10).unwrap();
        mapping.lock(LARGE..LARGE + page).unwrap();
        assert_eq!(cache.stats().large_pages_split, 2);
        mapping.advise(0..4 * MIB, omnimap::Advice::DontNeed).unwrap();
        assert_eq!(mapping.kernel_resident_bytes().unwrap(), 2 * page);
        drop(pin);
        assert!(is_pattern(&mapping));
    });
}

#[test]
fn m01_bytes_are_right_while_large_pages_come_and_go() {
    if skip_without_large_pages() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let cache = Cache::new(6 * MIB).unwrap();
        if cache.fault_mode() != FaultMode::Worker {
            return; // As all mappings of the family.
        }
        let (object, start) = mapped(&cache);
        let other = MapOptions::new().cache(&cache).map(pattern_store(8 * MIB)).unwrap();
        let address = start as usize;
        let begin = Instant::now();
        let is_on = move || begin.elapsed() < Duration::from_secs(4);
        std::thread::scope(|scope| {
            for seed in 0..2 {
                scope.spawn(move || {
                    let mut random = Prng::new(seed);
                    while is_on() {
                        let at = random.below(2 * LARGE);
                        assert_eq!(slice(address as *mut c_void)[at as usize], pattern(at), "{at}");
                    }
                });
            }
            scope.spawn(|| {
                let mut random = Prng::new(9);
                while is_on() {
                    let at = random.below(2 * LARGE - 5000);
                    let mut copy = [0; 5000];
                    object.read_at(at, &mut copy).unwrap();
                    assert!((at..).zip(&copy).all(|(at, byte)| *byte == pattern(at)), "{at}");
                }
            });
            scope.spawn(|| {
                // Somebody else wants room, now and then.
                while is_on() {
                    for at in (0..8 * MIB).step_by(4096) {
                        assert_eq!(other[at as usize], pattern(at));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            while is_on() {
                assert!(is_pattern(slice(address as *mut c_void)));
                let _if_all_is_there = advise(address as *mut c_void, 0, 2 * LARGE, Advice::COLLAPSE);
            }
        });
        let stats = cache.stats();
        assert!(stats.large_pages_made > 10 && stats.large_pages_split > 10, "{stats:?}");
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start, 2 * LARGE as usize) }.unwrap();
    });
}

#[test]
fn f01_who_goes_on_with_an_object_splits_the_large_pages_of_who_is_gone() {
    const NAME: &str = "f01_who_goes_on_with_an_object_splits_the_large_pages_of_who_is_gone";
    if skip_without_large_pages() || Cache::new(MIB).unwrap().fault_mode() != FaultMode::Worker {
        return;
    }
    let _alone = alone();
    // This process, its child that opens the file, and a child of that which goes on when that is gone.
    if let Some(output) = in_child(NAME, LIMIT) {
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("all is right"), "{told}");
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, (0..2 * LARGE).map(pattern).collect::<Vec<u8>>()).unwrap();
    let object = MapOptions::new().budget(8 * MIB).open_object(file.path()).unwrap();
    let start = map(&object);
    advise(start, 0, 2 * LARGE, Advice::COLLAPSE).unwrap();
    let parent = std::process::id();
    // SAFETY: the child uses what it inherits, and ends.
    if unsafe { libc::fork() } != 0 {
        // SAFETY: ends this process without a word.
        unsafe { libc::kill(parent as libc::pid_t, libc::SIGKILL) };
    }
    while std::os::unix::process::parent_id() == parent {
        std::thread::yield_now();
    }
    // A panic would not end this process.
    let problem = goes_on(&object, start);
    eprintln!("{}", problem.as_deref().unwrap_or("all is right"));
    std::process::exit(0);
}

/// What is wrong with an object whose large pages another process has made, which is gone.
fn goes_on(object: &Object, start: *mut c_void) -> Option<String> {
    let page = omnimap::machine::page_bytes();
    let begin = Instant::now();
    // Until it serves the object itself, others do what is asked.
    while object.resident_bytes().ok()? == 2 * LARGE && begin.elapsed() < LIMIT / 2 {
        let _not_yet = advise(start, 7 * page, page, Advice::PAGEOUT);
        std::thread::sleep(Duration::from_millis(10));
    }
    let (is_right, split) = (is_pattern(slice(start)), object.stats().large_pages_split);
    let resident = object.resident_bytes().ok()?;
    // As far as it knows, every range could be large.
    let expected = is_right && split == 1 && resident == 2 * LARGE;
    (!expected).then(|| format!("right: {is_right}, {split} split, {resident} bytes resident"))
}

#[test]
fn f01_a_child_shows_what_was_shown_by_large_pages() {
    if skip_without_large_pages() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let cache = Cache::new(8 * MIB).unwrap();
        if cache.fault_mode() != FaultMode::Worker {
            return; // Children need it.
        }
        let (object, start) = mapped(&cache);
        advise(start, 0, 2 * LARGE, Advice::COLLAPSE).unwrap();
        // SAFETY: the child looks at the mapping and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(!is_pattern(slice(start)));
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        advise(start, 0, LARGE, Advice::PAGEOUT).unwrap();
        assert_eq!(object.resident_bytes().unwrap(), LARGE);
        assert!(is_pattern(slice(start)));
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start, 2 * LARGE as usize) }.unwrap();
    });
}
