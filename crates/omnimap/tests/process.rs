//! Signals, forks, locks: what the process around us does.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use omnimap::store::{Faulty, Misbehaviour};
use omnimap::{Advice, Cache, Error, FaultMode, MapOptions, Mapping};
use omnimap_testkit::{in_child, pattern, pattern_store, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn faulty() -> (Arc<Faulty>, Mapping) {
    let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
    let mapping = MapOptions::new().budget(MIB).map_shared(store.clone()).unwrap();
    (store, mapping)
}

fn install(handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for.
    assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) }, 0);
}

extern "C" fn exit_42(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) };
}

#[test]
fn e2_a_handler_installed_before_runs_after_our_line() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "e2_a_handler_installed_before_runs_after_our_line";
    match in_child(name, LIMIT) {
        None => {
            install(exit_42);
            let (store, mapping) = faulty();
            store.on_read(0..1, Misbehaviour::Fail, u64::MAX);
            std::hint::black_box(mapping[5]);
        }
        Some(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(42), "{errors}");
            assert_eq!(errors.lines().filter(|l| l.contains("omnimap: SIGBUS")).count(), 1, "{errors}");
        }
    }
}

#[test]
fn e2_a_handler_installed_before_runs_for_faults_that_are_not_ours() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "e2_a_handler_installed_before_runs_for_faults_that_are_not_ours";
    match in_child(name, LIMIT) {
        None => {
            install(exit_42);
            let (_, mapping) = faulty();
            assert_eq!(mapping[0], pattern(0));
            let file = tempfile::tempfile().unwrap();
            file.set_len(MIB).unwrap();
            let kernel = omnimap::machine::KernelFile::map(&file).unwrap();
            file.set_len(0).unwrap();
            kernel.read_at(0, &mut [0]);
        }
        Some(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(42), "{errors}");
            assert!(!errors.contains("omnimap: SIGBUS"), "it is not ours: {errors}");
        }
    }
}

static TOLD: AtomicI32 = AtomicI32::new(0);

extern "C" fn count_and_return(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TOLD.fetch_add(1, Ordering::SeqCst);
}

/// E3 for raw accesses: the handler returns, the access is repeated, and asks the store again.
#[test]
fn e3_an_access_that_is_repeated_tries_again() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "e3_an_access_that_is_repeated_tries_again";
    match in_child(name, LIMIT) {
        None => {
            install(count_and_return);
            let (store, mapping) = faulty();
            store.on_read(0..1, Misbehaviour::Fail, 3);
            assert_eq!(mapping[5], pattern(5), "when the store is well again");
            assert_eq!(TOLD.load(Ordering::SeqCst), 3, "and was told of each failure");
        }
        Some(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn more_failures_than_are_remembered_hang_nobody() {
    if omnimap_testkit::skip_without_kernel_faults() {
        return;
    }
    let name = "more_failures_than_are_remembered_hang_nobody";
    match in_child(name, LIMIT) {
        None => {
            install(count_and_return);
            let (store, mapping) = faulty();
            let page = mapping.page_bytes() as usize;
            mapping.advise(0..8 * MIB, Advice::Random).unwrap();
            store.on_read(0..8 * MIB, Misbehaviour::Fail, u64::MAX);
            let (_reader, writer) = std::io::pipe().unwrap();
            // EFAULT raises no signal, so all of them stay failed.
            for index in 0..200 {
                let refused = rustix::io::write(&writer, &mapping[index * page..][..1]);
                assert_eq!(refused, Err(rustix::io::Errno::FAULT));
            }
            store.heal();
            for index in 0..200 {
                assert_eq!(mapping[index * page], pattern((index * page) as u64));
            }
            let told = TOLD.load(Ordering::SeqCst);
            assert!((1..=64).contains(&told), "{told} were remembered");
        }
        Some(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn sigbus_sent_by_somebody_does_what_it_did_before() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "sigbus_sent_by_somebody_does_what_it_did_before";
    match in_child(name, LIMIT) {
        None => {
            // SAFETY: SIG_DFL takes no code.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            let (_, mapping) = faulty();
            assert_eq!(mapping[0], pattern(0));
            let process = std::process::id() as libc::pid_t;
            // SAFETY: a signal to this process.
            unsafe { libc::kill(process, libc::SIGBUS) };
            std::thread::sleep(Duration::from_secs(1));
        }
        Some(output) => assert_eq!(output.status.signal(), Some(libc::SIGBUS)),
    }
}

/// A system call gets EFAULT, and does not find the page failed for ever.
#[test]
fn e3_a_system_call_that_failed_succeeds_later() {
    if omnimap_testkit::skip_without_kernel_faults() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = faulty();
        store.on_read(0..1, Misbehaviour::Fail, 1);
        let (reader, writer) = std::io::pipe().unwrap();
        let write = || rustix::io::write(&writer, &mapping[..10]);
        assert_eq!(write(), Err(rustix::io::Errno::FAULT));
        let begin = std::time::Instant::now();
        while write() != Ok(10) {
            assert!(begin.elapsed() < Duration::from_secs(20), "it fails for ever");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut bytes = [0; 10];
        rustix::io::read(&reader, &mut bytes).unwrap();
        assert!((0..).zip(bytes).all(|(at, b)| b == pattern(at)));
    });
}

/// Runs `work` in a forked child and gives its wait status.
fn fork(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `work` and ends; what it calls takes no lock that another thread can hold.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let code = work();
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    let begin = std::time::Instant::now();
    loop {
        // SAFETY: waits for the child just made.
        match unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } {
            0 if begin.elapsed() > Duration::from_secs(20) => {
                // SAFETY: our child.
                unsafe { libc::kill(child, libc::SIGKILL) };
                panic!("the child hangs");
            }
            0 => std::thread::sleep(Duration::from_millis(2)),
            _ => return status,
        }
    }
}

#[test]
fn f03_a_child_gets_sigsegv_or_an_error_and_never_zeros() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "f03_a_child_gets_sigsegv_or_an_error_and_never_zeros";
    let Some(output) = in_child(name, LIMIT) else {
        let (_, mapping) = faulty();
        assert_eq!(mapping[0], pattern(0));
        let cache = Cache::new(MIB).unwrap();
        let status = fork(|| {
            std::hint::black_box(mapping[0]);
            0
        });
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
        let checked = fork(|| match mapping.read_at(0, &mut [0; 8]) {
            Err(Error::Forked { .. }) => 7,
            _ => 1,
        });
        assert_eq!(libc::WEXITSTATUS(checked), 7);
        let anew = fork(|| match MapOptions::new().cache(&cache).map(pattern_store(MIB)) {
            Err(Error::Forked { .. }) => 7,
            _ => 1,
        });
        assert_eq!(libc::WEXITSTATUS(anew), 7, "the cache is the parent's");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn f03_a_child_that_drops_a_mapping_takes_nothing_from_its_parent() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "f03_a_child_that_drops_a_mapping_takes_nothing_from_its_parent";
    let Some(output) = in_child(name, LIMIT) else {
        let (_, mapping) = faulty();
        // Nothing is read ahead, so that no other thread holds the object when the process forks: the child's copy of it
        // is the last, and really dropped.
        mapping.advise(0..8 * MIB, Advice::Random).unwrap();
        let mapping = std::mem::ManuallyDrop::new(mapping);
        assert!((0..).zip(&mapping[..MIB as usize / 2]).all(|(at, b)| *b == pattern(at)));
        std::thread::sleep(Duration::from_millis(100));
        let status = fork(|| {
            // SAFETY: the child's copy, used by nobody after this.
            drop(unsafe { std::ptr::read(&*mapping) });
            0
        });
        assert_eq!(status, 0);
        let mut copy = vec![0; MIB as usize / 2];
        mapping.read_at(0, &mut copy).unwrap();
        assert!((0..).zip(&copy).all(|(at, b)| *b == pattern(at)), "what is in memory is still there");
        assert!((0..).zip(mapping.iter()).all(|(at, b)| *b == pattern(at)));
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// mmap itself touches what is accessible, then: it must not be before we are told.
#[test]
fn l04_after_lockall_future_a_mapping_has_its_bytes() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "l04_after_lockall_future_a_mapping_has_its_bytes";
    let Some(output) = in_child(name, LIMIT) else {
        // SAFETY: changes no memory.
        if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
            omnimap_testkit::skip(&format!("mlockall: {}", std::io::Error::last_os_error()));
            return;
        }
        let mapping = match MapOptions::new().budget(MIB).map(pattern_store(2 * MIB)) {
            Ok(mapping) => mapping,
            // SAFETY: only asks.
            Err(error) if unsafe { libc::geteuid() } != 0 => {
                omnimap_testkit::skip(&format!("the limit of locked memory is too small: {error}"));
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert!((0..).zip(mapping.iter()).all(|(at, b)| *b == pattern(at)));
        assert!(mapping.kernel_resident_bytes().unwrap() <= MIB);
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// As a program does that becomes a daemon: without its descriptor, holes would read as zeros.
#[test]
fn a_process_that_closes_our_descriptors_ends_with_a_line() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let name = "a_process_that_closes_our_descriptors_ends_with_a_line";
    match in_child(name, LIMIT) {
        None => {
            let (_, mapping) = faulty();
            assert_eq!(mapping[0], pattern(0));
            // SAFETY: what is tested; the process ends by it.
            unsafe { libc::close_range(3, 1000, 0) };
            std::hint::black_box(mapping[7 * MIB as usize]);
            std::thread::sleep(Duration::from_secs(20));
        }
        Some(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
            // Without userfaultfd it is the memory that is missed first.
            let trap = Cache::new(MIB).unwrap().fault_mode() == FaultMode::Trap;
            let why = if trap { "memory" } else { "faults can no longer be served" };
            assert!(errors.contains("omnimap: aborting: ") && errors.contains(why), "{errors}");
        }
    }
}

#[test]
fn signals_of_the_program_do_not_run_on_our_threads() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (_, mapping) = faulty();
        assert_eq!(mapping[0], pattern(0));
        mapping.read_at(MIB, &mut [0; 10]).unwrap();
        let mut seen = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let field =
                |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
            if field("Name:").is_some_and(|n| n.starts_with("omnimap-")) {
                let blocked = u64::from_str_radix(&field("SigBlk:").unwrap(), 16).unwrap();
                for signal in [libc::SIGALRM, libc::SIGPROF, libc::SIGTERM, libc::SIGUSR1] {
                    assert!(blocked & 1 << (signal - 1) != 0, "signal {signal}");
                }
                seen += 1;
            }
        }
        assert!(seen >= 2, "{seen} threads were looked at");
    });
}
