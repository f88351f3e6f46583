//! Each way of serving faults, asked for by name: what is particular about it. That the other tests pass under each is
//! checked by `cargo xtask modes`.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use omnimap::store::{Answers, BackingStore, Faulty, MemoryStore, Misbehaviour, StoreError, Transfer};
use omnimap::{Advice, Cache, FaultMode, MapOptions};
use omnimap_testkit::{Prng, in_child, is_child, pattern, pattern_store, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// The modes that this machine allows; the others are skipped, loudly.
fn modes() -> Vec<FaultMode> {
    let allowed = |mode: &FaultMode| match Cache::with_fault_mode(MIB, *mode) {
        Ok(cache) => {
            assert_eq!(cache.fault_mode(), *mode);
            true
        }
        Err(error) => {
            omnimap_testkit::skip(&format!("fault mode {mode}: {error}"));
            false
        }
    };
    FaultMode::ALL.into_iter().filter(allowed).collect()
}

fn options(mode: FaultMode) -> MapOptions {
    let mut options = MapOptions::new();
    options.budget(MIB).fault_mode(mode);
    options
}

#[test]
fn m01_m02_bytes_are_read_and_written_in_each_mode() {
    for mode in modes() {
        within(LIMIT, move || {
            let bytes = (0..8 * MIB).map(pattern).collect();
            let store = Arc::new(MemoryStore::writable("pattern", bytes));
            let mut mapping = options(mode).map_mut(store.clone()).unwrap();
            assert!((0..).zip(mapping.iter()).all(|(at, byte)| *byte == pattern(at)), "{mode}");
            assert!(mapping.stats().pages_evicted > 0, "{mode}");
            for at in (0..8 * MIB as usize).step_by(5000) {
                mapping[at] = !pattern(at as u64);
            }
            mapping.sync().unwrap();
            let mut found = vec![0; 8 * MIB as usize];
            store.read_at(0, &mut found).unwrap();
            for (at, byte) in found.iter().enumerate() {
                let before = pattern(at as u64);
                assert_eq!(*byte, if at % 5000 == 0 { !before } else { before }, "{mode}, byte {at}");
            }
        });
    }
}

/// What is only read is not written, in a mapping that can be stored to.
#[test]
fn m02_only_what_was_stored_to_is_written_in_each_mode() {
    for mode in modes() {
        within(LIMIT, move || {
            let store = MemoryStore::writable("pattern", (0..4 * MIB).map(pattern).collect());
            let mut mapping = options(mode).budget(8 * MIB).map_mut(store).unwrap();
            let page = mapping.page_bytes();
            assert!((0..).zip(mapping.iter()).all(|(at, byte)| *byte == pattern(at)));
            for index in [3, 4, 700] {
                mapping[index * page as usize] = 1;
            }
            mapping.sync().unwrap();
            assert_eq!(mapping.stats().bytes_written_back, 3 * page, "{mode}");
            // Their stores are trapped again.
            mapping[3 * page as usize] = 2;
            mapping.sync().unwrap();
            assert_eq!(mapping.stats().bytes_written_back, 4 * page, "{mode}");
        });
    }
}

/// A page that was dirty when it was cut off is clean when it comes again, and its stores are trapped.
#[test]
fn m22_what_is_stored_after_the_end_moved_to_and_fro_is_written_in_each_mode() {
    for mode in modes() {
        within(LIMIT, move || {
            let store = Arc::new(MemoryStore::writable("cut", vec![7; 4 * MIB as usize]));
            let mut mapping = options(mode).budget(8 * MIB).reserve(8 * MIB).map_mut(store.clone()).unwrap();
            let at = 3 * MIB as usize;
            mapping[at] = 9;
            mapping.resize(MIB).unwrap();
            mapping.resize(4 * MIB).unwrap();
            mapping.sync().unwrap();
            assert_eq!(mapping[at], 0, "{mode}: what was cut off does not come back");
            mapping[at] = 5;
            mapping.sync().unwrap();
            let mut found = [0];
            store.read_at(at as u64, &mut found).unwrap();
            assert_eq!(found, [5], "{mode}");
        });
    }
}

/// What a child of the test became that did something in a mode.
fn in_child_with(name: &str, mode: FaultMode, work: impl FnOnce(MapOptions)) -> Option<Output> {
    // In the child that would install our handlers.
    if !is_child(name) && !modes().contains(&mode) {
        return None;
    }
    let output = in_child(name, LIMIT);
    if output.is_none() {
        work(options(mode));
        // The test is over for the child; the parent judges.
        std::process::exit(0);
    }
    output
}

fn touch_what_was_cut_off(mut options: MapOptions) {
    let mut mapping =
        options.reserve(8 * MIB).map_mut(MemoryStore::writable("cut", vec![7; 4 * MIB as usize])).unwrap();
    mapping[3 * MIB as usize] = 9;
    mapping.resize(MIB).unwrap();
    mapping.resize(4 * MIB).unwrap();
    assert_eq!((mapping[0], mapping[3 * MIB as usize]), (7, 0), "what was cut off does not come back");
    mapping.resize(MIB).unwrap();
    let beyond = mapping.as_ptr().wrapping_add(2 * MIB as usize);
    // SAFETY: not sound, and ends the process; that is the test.
    std::hint::black_box(unsafe { beyond.read_volatile() });
}

fn is_ended_by(signal: i32, output: Option<Output>) {
    if let Some(output) = output {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal), "{errors}");
    }
}

#[test]
fn m20_m21_m22_beyond_the_end_is_sigbus_in_thread() {
    let name = "m20_m21_m22_beyond_the_end_is_sigbus_in_thread";
    is_ended_by(libc::SIGBUS, in_child_with(name, FaultMode::InThread, touch_what_was_cut_off));
}

#[test]
fn m20_m21_m22_beyond_the_end_is_sigbus_by_trap() {
    let name = "m20_m21_m22_beyond_the_end_is_sigbus_by_trap";
    is_ended_by(libc::SIGBUS, in_child_with(name, FaultMode::Trap, touch_what_was_cut_off));
}

fn store_to_what_is_read_only(options: MapOptions) {
    let mapping = options.map(pattern_store(MIB)).unwrap();
    assert_eq!(mapping[5], pattern(5));
    // SAFETY: not sound, and ends the process; that is the test.
    unsafe { mapping.as_ptr().cast_mut().write_volatile(1) };
}

#[test]
fn m24_a_store_to_a_read_only_mapping_is_sigsegv_in_thread() {
    let name = "m24_a_store_to_a_read_only_mapping_is_sigsegv_in_thread";
    is_ended_by(libc::SIGSEGV, in_child_with(name, FaultMode::InThread, store_to_what_is_read_only));
}

#[test]
fn m24_a_store_to_a_read_only_mapping_is_sigsegv_by_trap() {
    let name = "m24_a_store_to_a_read_only_mapping_is_sigsegv_by_trap";
    is_ended_by(libc::SIGSEGV, in_child_with(name, FaultMode::Trap, store_to_what_is_read_only));
}

extern "C" fn exit_42(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) };
}

fn install(signal: i32, handler: usize) {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: callers pass handlers with the signature that SA_SIGINFO asks for.
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }, 0);
}

#[test]
fn e2_an_earlier_sigsegv_handler_runs_for_faults_that_are_not_ours() {
    let name = "e2_an_earlier_sigsegv_handler_runs_for_faults_that_are_not_ours";
    let output = in_child_with(name, FaultMode::Trap, |options| {
        install(libc::SIGSEGV, exit_42 as *const () as usize);
        let mapping = options.map(pattern_store(MIB)).unwrap();
        assert_eq!(mapping[5], pattern(5));
        // SAFETY: not sound, and ends the process; that is the test.
        std::hint::black_box(unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() });
    });
    if let Some(output) = output {
        assert_eq!(output.status.code(), Some(42), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

static TOLD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TOLD.fetch_add(1, Ordering::SeqCst);
}

/// Pages come and go in a cache of this process; one fails, is told about, and is tried again.
fn use_a_cache(mode: FaultMode) {
    TOLD.store(0, Ordering::SeqCst);
    let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
    let mapping = options(mode).map_shared(store.clone()).unwrap();
    assert!((0..).zip(mapping.iter()).all(|(at, byte)| *byte == pattern(at)), "{mode}");
    store.on_read(0..1, Misbehaviour::Fail, 2);
    assert_eq!(mapping[5], pattern(5), "{mode}: when the store is well again");
    assert_eq!(TOLD.load(Ordering::SeqCst), 2, "{mode}: and each failure was told of");
}

#[test]
fn e2_e3_f03_a_forked_child_has_caches_of_its_own_in_each_mode() {
    let name = "e2_e3_f03_a_forked_child_has_caches_of_its_own_in_each_mode";
    let output = in_child_with(name, FaultMode::Trap, |_| {
        install(libc::SIGBUS, count as *const () as usize);
        for mode in modes() {
            use_a_cache(mode);
            // SAFETY: no other thread has a lock that the child needs: what the engine's have is given back by now.
            match unsafe { libc::fork() } {
                0 => {
                    // SAFETY: a limit for the child.
                    unsafe { libc::alarm(30) };
                    modes().into_iter().for_each(use_a_cache);
                    // SAFETY: ends the child without what is its parent's to do.
                    unsafe { libc::_exit(0) };
                }
                child => {
                    let mut status = 0;
                    // SAFETY: waits for the child.
                    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                    assert_eq!(status, 0, "{mode}");
                }
            }
        }
    });
    if let Some(output) = output {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let each = 2 * modes().len() * (1 + modes().len());
        assert_eq!(errors.lines().filter(|line| line.contains("omnimap: SIGBUS")).count(), each, "{errors}");
    }
}

static MAPPING: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static SEEN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn look_elsewhere(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: inside the mapping, which outlives the handler.
    let byte = unsafe { MAPPING.load(Ordering::SeqCst).wrapping_add(4 * MIB as usize).read_volatile() };
    SEEN.store(1 + usize::from(byte), Ordering::SeqCst);
}

/// A thread that waits for its page takes signals, and their handlers may need pages too.
#[test]
fn a_handler_that_needs_a_page_runs_while_its_thread_waits_for_another() {
    for mode in modes() {
        SEEN.store(0, Ordering::SeqCst);
        within(LIMIT, move || {
            let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
            store.on_read(0..1, Misbehaviour::Hold, 1);
            let mapping = options(mode).map_shared(store.clone()).unwrap();
            mapping.advise(0..8 * MIB, Advice::Random).unwrap();
            MAPPING.store(mapping.as_ptr().cast_mut(), Ordering::SeqCst);
            install(libc::SIGUSR2, look_elsewhere as *const () as usize);
            let mapping = &mapping;
            std::thread::scope(|scope| {
                let (sender, receiver) = std::sync::mpsc::channel();
                let waiting = scope.spawn(move || {
                    // SAFETY: always succeeds.
                    sender.send(unsafe { libc::pthread_self() }).unwrap();
                    mapping[0]
                });
                let thread = receiver.recv().unwrap();
                assert!(store.wait_until_held(1, LIMIT));
                // SAFETY: the thread waits for the store.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
                while SEEN.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                store.release();
                assert_eq!(waiting.join().unwrap(), pattern(0), "{mode}");
            });
            assert_eq!(SEEN.load(Ordering::SeqCst), 1 + usize::from(pattern(4 * MIB)), "{mode}");
        });
    }
}

/// More than there are places for faults to be handed over in.
#[test]
fn a_hundred_threads_that_wait_at_once_are_all_served() {
    for mode in modes() {
        within(LIMIT, move || {
            let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
            store.on_read(0..8 * MIB, Misbehaviour::Block(Duration::from_millis(100)), 100);
            let mapping = options(mode).map_shared(store).unwrap();
            mapping.advise(0..8 * MIB, Advice::Random).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..100 {
                    let mapping = &mapping;
                    scope.spawn(move || {
                        let at = thread * 70_000;
                        assert_eq!(mapping[at as usize], pattern(at), "{mode}");
                    });
                }
            });
        });
    }
}

/// Readers and writers of all pages under a budget of few: pages come and go under them in every state.
#[test]
fn threads_that_read_and_write_under_pressure_see_their_own_bytes_in_each_mode() {
    for mode in modes() {
        within(LIMIT, move || {
            const THREADS: u64 = 4;
            let store = Arc::new(MemoryStore::writable("shared", vec![0; 4 * MIB as usize]));
            let mapping = options(mode).budget(256 << 10).map_shared_mut(store.clone()).unwrap();
            let words = mapping.atomics_u64(0..4 * MIB).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    scope.spawn(move || {
                        let mut random = Prng::new(thread + 1);
                        for _ in 0..4000 {
                            let at = random.below(words.len() as u64 / THREADS) * THREADS + thread;
                            words[at as usize].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            mapping.sync().unwrap();
            let mut bytes = vec![0; 4 * MIB as usize];
            store.read_at(0, &mut bytes).unwrap();
            let sum: u64 = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).sum();
            assert_eq!(sum, THREADS * 4000, "{mode}: no increment is lost");
            assert!(mapping.stats().pages_evicted > 0, "{mode}");
        });
    }
}

/// Each run of pages that may be stored to is a mapping of the kernel's, and those are bounded.
#[test]
fn more_scattered_stores_than_there_may_be_mappings_are_let_when_some_are_written() {
    let name = "more_scattered_stores_than_there_may_be_mappings_are_let_when_some_are_written";
    let output = in_child_with(name, FaultMode::Trap, |mut options| {
        const PAGES: usize = 4000;
        let store = Arc::new(MemoryStore::writable("scattered", vec![0; 64 * MIB as usize]));
        let mut mapping = options.budget(64 * MIB).dirty_max(64 * MIB).map_mut(store.clone()).unwrap();
        let page = mapping.page_bytes() as usize;
        mapping[0] = 1;
        leave_mappings(1000);
        for index in 0..PAGES {
            mapping[2 * index * page] = 1;
        }
        mapping.sync().unwrap();
        let mut bytes = vec![0; 64 * MIB as usize];
        store.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == 1).count(), PAGES);
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Uses up the kernel's mappings of this process but for so many.
fn leave_mappings(count: usize) {
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let bytes = (most + 10) * 4096;
    let (none, map) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping at a place of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, none, map, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let page = |index: usize| start.wrapping_byte_add(index * 4096);
    let mut made = Vec::new();
    for index in (1..most).step_by(2) {
        // SAFETY: a page of the mapping just made.
        if unsafe { libc::mprotect(page(index), 4096, libc::PROT_READ) } != 0 {
            break;
        }
        made.push(index);
    }
    for index in made.iter().rev().take(count / 2) {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mprotect(page(*index), 4096, none) }, 0);
    }
}

/// As the default profile of a container does: no userfaultfd, by the call or by the device.
fn refuse_userfaultfd() {
    let jump =
        |code: u32, k: u32, yes: u8, no: u8| libc::sock_filter { code: code as u16, jt: yes, jf: no, k };
    let load = |offset| jump(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let is = |k, yes, no| jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, yes, no);
    let answer = |k| jump(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    // The number of the call, and the low half of its second argument (`struct seccomp_data`).
    let mut filter = [
        load(0),
        is(libc::SYS_userfaultfd as u32, 3, 0),
        is(libc::SYS_ioctl as u32, 0, 3),
        load(24),
        is(0xAA00, 0, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: changes what this thread may do, and no memory.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: reads the program.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_userfaultfd_is_refused_mappings_are_made_without_it() {
    let name = "where_userfaultfd_is_refused_mappings_are_made_without_it";
    if std::env::var_os(FaultMode::VARIABLE).is_some() {
        omnimap_testkit::skip("a fault mode is forced");
        return;
    }
    let output = in_child_with(name, FaultMode::Trap, |_| {
        refuse_userfaultfd();
        let refused = Cache::with_fault_mode(MIB, FaultMode::Worker).err().unwrap().to_string();
        assert!(refused.contains("no userfaultfd"), "{refused}");
        let cache = Cache::new(MIB).unwrap();
        assert_eq!(cache.fault_mode(), FaultMode::Trap);
        let mut mapping = MapOptions::new().cache(&cache).map_private(pattern_store(4 * MIB)).unwrap();
        assert!((0..).zip(mapping.iter()).all(|(at, byte)| *byte == pattern(at)));
        mapping[100] = 1;
        assert_eq!(mapping[100], 1);
        let probe = omnimap::machine::probe(std::path::Path::new("."));
        assert_eq!((probe.fault_mode, probe.usable()), (Some(FaultMode::Trap), true));
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Knows which thread asked it last.
struct Asked {
    answers: Answers,
    by: Mutex<Option<ThreadId>>,
}

impl BackingStore for Asked {
    fn name(&self) -> &str {
        "asked"
    }
    fn len(&self) -> u64 {
        MIB
    }
    fn transfer(&self) -> Transfer {
        Transfer::new(4096, 4).answering(self.answers)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError> {
        *self.by.lock().unwrap() = Some(std::thread::current().id());
        // More than fits on the stack that a handler is given (SIGSTKSZ).
        let bytes = std::hint::black_box([7; 64 << 10]);
        let count = into.len().min((MIB - offset) as usize).min(bytes.len());
        into[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }
}

#[test]
fn a_thread_serves_its_own_fault_where_the_store_answers_promptly() {
    for mode in modes() {
        for answers in [Answers::AtOnce, Answers::Promptly, Answers::Eventually] {
            let (ours, asked) = within(LIMIT, move || {
                let store = Arc::new(Asked { answers, by: Mutex::default() });
                let mapping = options(mode).advice(Advice::Random).map_shared(store.clone()).unwrap();
                assert_eq!(mapping[MIB as usize / 2], 7);
                (std::thread::current().id(), store.by.lock().unwrap().unwrap())
            });
            let itself = mode != FaultMode::Worker && answers != Answers::Eventually;
            assert_eq!(ours == asked, itself, "{mode}, {answers:?}");
        }
    }
}
