//! Shared memory by name and by descriptor (I1), between processes.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use omnimap::Error;
use omnimap::shm::{Awaited, SharedMemory};
use omnimap_testkit::{in_child, within};

const LIMIT: Duration = Duration::from_secs(60);
const PEER: &str = "OMNIMAP_TEST_PEER";

/// A name of this test's own, taken away at its end.
struct Name(String);

impl Name {
    fn new() -> Name {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Name(format!("/omnimap-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = SharedMemory::unlink(&self.0);
    }
}

/// Runs the test named `test` in another process too, which finds `told` in its [`PEER`].
struct Peer(Child);

impl Peer {
    fn start(test: &str, told: &str, input: Stdio) -> Peer {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(PEER, told).stdin(input);
        Peer(command.stdout(Stdio::null()).spawn().unwrap())
    }

    fn ended_well(mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In the other process: does its part, which ends even when the first process does not go on.
fn is_peer(work: impl FnOnce(&str) + Send + 'static) -> bool {
    let told = std::env::var(PEER);
    if let Ok(told) = told.clone() {
        within(LIMIT, move || work(&told));
    }
    told.is_ok()
}

fn wait_for(memory: &SharedMemory, offset: u64, wanted: u32) {
    let cell = memory.atomic_u32(offset).unwrap();
    loop {
        let now = cell.load(Ordering::Acquire);
        if now == wanted {
            return;
        }
        memory.wait(offset, now, None).unwrap();
    }
}

fn tell(memory: &SharedMemory, offset: u64, value: u32) {
    memory.atomic_u32(offset).unwrap().store(value, Ordering::Release);
    memory.wake(offset, u32::MAX).unwrap();
}

#[test]
fn i1_two_processes_play_ping_pong_by_name() {
    const ROUNDS: u32 = 500;
    let play = |name: &str| {
        let memory = SharedMemory::open(name).unwrap();
        for round in 0..ROUNDS {
            wait_for(&memory, 0, 2 * round + 1);
            let number: u64 = memory.read(8).unwrap();
            memory.write(8, &(number * 3 + 1)).unwrap();
            tell(&memory, 0, 2 * round + 2);
        }
    };
    if is_peer(play) {
        return;
    }
    within(LIMIT, || {
        let name = Name::new();
        let memory = SharedMemory::create(&name.0, 4096, 0o600).unwrap();
        let peer = Peer::start("i1_two_processes_play_ping_pong_by_name", &name.0, Stdio::null());
        let mut expected = 1u64;
        for round in 0..ROUNDS {
            memory.write(8, &expected).unwrap();
            tell(&memory, 0, 2 * round + 1);
            wait_for(&memory, 0, 2 * round + 2);
            expected = expected.wrapping_mul(3).wrapping_add(1) % 1_000_003;
            assert_eq!(memory.read::<u64>(8).unwrap() % 1_000_003, expected);
        }
        assert!(peer.ended_well());
    });
}

#[test]
fn i1_errors_are_those_of_shm_open() {
    let name = Name::new();
    let errno = |result: omnimap::Result<SharedMemory>| result.unwrap_err().errno();
    assert_eq!(errno(SharedMemory::open(&name.0)), libc::ENOENT);
    assert_eq!(SharedMemory::unlink(&name.0).unwrap_err().errno(), libc::ENOENT);
    let first = SharedMemory::create(&name.0, 100, 0o600).unwrap();
    assert_eq!(errno(SharedMemory::create(&name.0, 100, 0o600)), libc::EEXIST);
    for wrong in ["", "/", "/a/b", "/..", "a\0b"] {
        assert_eq!(errno(SharedMemory::open(wrong)), libc::EINVAL, "{wrong:?}");
        assert_eq!(errno(SharedMemory::create(wrong, 1, 0o600)), libc::EINVAL, "{wrong:?}");
        assert_eq!(errno(SharedMemory::open_or_create(wrong, 1, 0o600)), libc::EINVAL, "{wrong:?}");
    }
    assert_eq!(errno(SharedMemory::open(&format!("/{}", "n".repeat(256)))), libc::ENAMETOOLONG);
    assert_eq!(errno(SharedMemory::create(&name.0, u64::MAX, 0o600)), libc::EINVAL);
    let text = SharedMemory::open("/no such memory").unwrap_err().to_string();
    assert!(text.contains("/no such memory: shm_open: No such file"), "{text}");
    first.write(96, &7u32).unwrap();
    let again = SharedMemory::open_or_create(&name.0, 5000, 0o600).unwrap();
    assert_eq!((again.len(), again.read::<u32>(96).unwrap()), (100, 7), "it was there, and is as it was");
    SharedMemory::unlink(&name.0).unwrap();
    let made = SharedMemory::open_or_create(&name.0, 5000, 0o600).unwrap();
    assert_eq!((made.len(), made.read::<u32>(96).unwrap()), (5000, 0));
    assert_eq!(first.read::<u32>(96).unwrap(), 7, "who has what was unlinked keeps it");
}

#[test]
fn i1_the_mode_says_who_may_open() {
    use std::os::unix::fs::MetadataExt;
    let peer = is_peer(|other| {
        if rustix::process::geteuid().is_root() {
            // SAFETY: this process of its own gives its rights up for good.
            assert_eq!(unsafe { libc::setuid(65534) }, 0);
        }
        assert_eq!(SharedMemory::open(other).unwrap_err().errno(), libc::EACCES);
    });
    if peer {
        return;
    }
    let name = Name::new();
    let _memory = SharedMemory::create(&name.0, 1, 0o640).unwrap();
    let mode = std::fs::metadata(format!("/dev/shm{}", name.0)).unwrap().mode();
    assert_eq!(mode & 0o737, 0o600, "{mode:o}: as asked for, but for what the umask takes");
    let other = Name::new();
    let _other = SharedMemory::create(&other.0, 1, 0o400).unwrap();
    assert!(Peer::start("i1_the_mode_says_who_may_open", &other.0, Stdio::null()).ended_well());
}

/// Whoever finds the name finds the whole of it.
#[test]
fn i1_memory_appears_with_its_length() {
    within(LIMIT, || {
        for _ in 0..200 {
            let name = Arc::new(Name::new());
            let finder = {
                let name = name.clone();
                std::thread::spawn(move || {
                    loop {
                        match SharedMemory::open(&name.0) {
                            Ok(memory) => return memory.len(),
                            Err(error) => assert_eq!(error.errno(), libc::ENOENT),
                        }
                    }
                })
            };
            let _memory = SharedMemory::create(&name.0, 12_345, 0o600).unwrap();
            assert_eq!(finder.join().unwrap(), 12_345);
        }
    });
}

#[test]
fn i1_one_of_many_that_open_or_create_makes_it() {
    within(LIMIT, || {
        for _ in 0..50 {
            let name = Arc::new(Name::new());
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let name = name.clone();
                    std::thread::spawn(move || {
                        let memory = SharedMemory::open_or_create(&name.0, 8, 0o600).unwrap();
                        memory.atomic_u32(0).unwrap().fetch_add(1, Ordering::Relaxed);
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            assert_eq!(SharedMemory::open(&name.0).unwrap().read::<u32>(0).unwrap(), 4);
        }
    });
}

#[test]
fn i1_memory_is_passed_over_a_socket() {
    let test = "i1_memory_is_passed_over_a_socket";
    let receive = |_: &str| {
        let stdin: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let memory = SharedMemory::receive(&UnixStream::from(stdin)).unwrap();
        assert_eq!((memory.len(), memory.read::<u64>(4096).unwrap()), (8192, 7));
        memory.write(4096, &8u64).unwrap();
        tell(&memory, 0, 1);
    };
    if is_peer(receive) {
        return;
    }
    within(LIMIT, move || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::start(test, "", Stdio::from(OwnedFd::from(theirs)));
        let memory = SharedMemory::anonymous("passed", 8192).unwrap();
        memory.write(4096, &7u64).unwrap();
        memory.send(&ours).unwrap();
        wait_for(&memory, 0, 1);
        assert_eq!(memory.read::<u64>(4096).unwrap(), 8);
        assert!(peer.ended_well());
    });
}

#[test]
fn i1_what_is_no_shared_memory_is_refused() {
    use std::io::Write;
    let errno = |result: omnimap::Result<SharedMemory>| result.unwrap_err().errno();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"m").unwrap();
    assert_eq!(errno(SharedMemory::receive(&theirs)), libc::EBADMSG);
    drop(ours);
    assert_eq!(errno(SharedMemory::receive(&theirs)), libc::EPIPE);
    assert_eq!(errno(SharedMemory::from_fd(theirs.into())), libc::EINVAL);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(10).unwrap();
    let read_only = std::fs::File::open(file.path()).unwrap();
    assert_eq!(errno(SharedMemory::from_fd(read_only.into())), libc::EACCES);
    let shared = SharedMemory::from_fd(file.as_file().as_fd().try_clone_to_owned().unwrap()).unwrap();
    shared.write_at(0, b"in a file!").unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap(), b"in a file!");
}

#[test]
fn i1_a_wait_ends_by_time_by_change_and_by_as_many_wakes() {
    within(LIMIT, || {
        let memory = Arc::new(SharedMemory::anonymous("waiting", 4096).unwrap());
        let moment = Some(Duration::from_millis(5));
        assert_eq!(memory.wait(8, 0, moment).unwrap(), Awaited::TimedOut);
        assert_eq!(memory.wait(8, 1, None).unwrap(), Awaited::Changed);
        assert_eq!(memory.wait(8, 0, Some(Duration::ZERO)).unwrap(), Awaited::TimedOut);
        assert_eq!((memory.wake(8, 1).unwrap(), memory.wake(8, 0).unwrap()), (0, 0));
        let (sender, woken) = std::sync::mpsc::channel();
        for _ in 0..3 {
            let (memory, sender) = (memory.clone(), sender.clone());
            std::thread::spawn(move || sender.send(memory.wait(8, 0, Some(Duration::MAX)).unwrap()).unwrap());
        }
        let mut count = 0;
        while count < 3 {
            let one = memory.wake(8, 1).unwrap();
            assert!(one <= 1, "{one} were woken, and one was to be");
            count += one;
        }
        for _ in 0..3 {
            assert_eq!(woken.recv().unwrap(), Awaited::Woken);
        }
        for offset in [1, 4094, 4096, u64::MAX] {
            assert_eq!(memory.wait(offset, 0, moment).unwrap_err().errno(), libc::EINVAL, "{offset}");
            assert_eq!(memory.wake(offset, 1).unwrap_err().errno(), libc::EINVAL, "{offset}");
        }
    });
}

#[test]
fn e1_memory_that_a_peer_truncates_is_an_error_and_no_signal() {
    let test = "e1_memory_that_a_peer_truncates_is_an_error_and_no_signal";
    if is_peer(|name| SharedMemory::open(name).unwrap().resize(100).unwrap()) {
        return;
    }
    let Some(output) = in_child(test, LIMIT) else {
        let name = Name::new();
        let mut memory = SharedMemory::create(&name.0, 3 * 65536, 0o600).unwrap();
        memory.write_at(0, &[7; 3 * 65536]).unwrap();
        assert!(Peer::start(test, &name.0, Stdio::null()).ended_well());
        assert_eq!((memory.len(), memory.object_len().unwrap()), (3 * 65536, 100));
        assert!(matches!(
            memory.read_at(96, &mut [0; 8]),
            Err(Error::OutOfRange { offset: 96, end: 100, .. })
        ));
        assert!(matches!(memory.write_at(65536, &[1]), Err(Error::OutOfRange { end: 100, .. })));
        assert_eq!(memory.wait(65536, 0, None).unwrap_err().errno(), libc::EFAULT);
        memory.write_at(92, &[9; 8]).unwrap();
        assert_eq!(memory.read::<[u8; 10]>(90).unwrap(), [7, 7, 9, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(memory.object_len().unwrap(), 100, "nothing of this has made it longer");
        memory.remap().unwrap();
        assert_eq!((memory.len(), memory.cells().len()), (100, 100));
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A write that meets a truncation half way ends there, and does not make the object longer again.
#[test]
fn e1_a_checked_write_never_makes_memory_longer() {
    within(LIMIT, || {
        let memory = SharedMemory::anonymous("shrinking", 8 << 20).unwrap();
        let descriptor = memory.as_fd().try_clone_to_owned().unwrap();
        let writer = std::thread::spawn(move || {
            let bytes = vec![1; 8 << 20];
            let mut refused = 0;
            while refused == 0 {
                match memory.write_at(0, &bytes) {
                    Ok(()) => {}
                    Err(Error::OutOfRange { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            memory
        });
        std::thread::sleep(Duration::from_millis(20));
        rustix::fs::ftruncate(&descriptor, 4096).unwrap();
        let memory = writer.join().unwrap();
        assert_eq!(memory.object_len().unwrap(), 4096);
    });
}

#[test]
fn m21_a_raw_access_beyond_a_truncated_end_is_sigbus() {
    use std::os::unix::process::ExitStatusExt;
    let Some(output) = in_child("m21_a_raw_access_beyond_a_truncated_end_is_sigbus", LIMIT) else {
        let memory = SharedMemory::anonymous("short", 1 << 20).unwrap();
        rustix::fs::ftruncate(&memory, 4096).unwrap();
        memory.cells()[0].store(1, Ordering::Relaxed);
        memory.cells()[1 << 19].store(1, Ordering::Relaxed);
        return;
    };
    assert_eq!(output.status.signal(), Some(libc::SIGBUS));
}

#[test]
fn i1_memory_is_made_longer_and_shorter_and_others_follow() {
    let name = Name::new();
    let mut one = SharedMemory::create(&name.0, 0, 0o600).unwrap();
    assert!(one.is_empty() && one.cells().is_empty() && one.atomic_u32(0).is_none());
    let mut two = SharedMemory::open(&name.0).unwrap();
    one.resize(100_000).unwrap();
    one.write(99_992, &5u64).unwrap();
    assert!(matches!(two.read::<u64>(99_992), Err(Error::OutOfRange { end: 0, .. })));
    two.remap().unwrap();
    assert_eq!((two.len(), two.read::<u64>(99_992).unwrap()), (100_000, 5));
    assert_eq!(two.atomic_u64(99_992).unwrap().load(Ordering::Relaxed), 5);
    two.resize(10).unwrap();
    one.resize(100_000).unwrap();
    assert_eq!(one.read::<u64>(99_992).unwrap(), 0, "what was cut off does not come back");
    one.allocate(0..100_000).unwrap();
    one.allocate(7..7).unwrap();
    assert!(matches!(one.allocate(0..100_001), Err(Error::OutOfRange { .. })));
}

/// X4: a forked child has the mapping itself.
#[test]
fn x4_a_parent_and_its_forked_child_count_in_one_page() {
    const ROUNDS: u64 = 50_000;
    let Some(output) = in_child("x4_a_parent_and_its_forked_child_count_in_one_page", LIMIT) else {
        let memory = SharedMemory::anonymous("page", 4096).unwrap();
        let count = || {
            for _ in 0..ROUNDS {
                memory.atomic_u64(0).unwrap().fetch_add(1, Ordering::Relaxed);
            }
        };
        // SAFETY: the child adds, wakes and ends; it takes no lock.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            count();
            tell(&memory, 8, 1);
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        count();
        wait_for(&memory, 8, 1);
        assert_eq!(memory.read::<u64>(0).unwrap(), 2 * ROUNDS);
        // SAFETY: waits for the child just made.
        assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
