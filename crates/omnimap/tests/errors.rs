//! E1 to E4: what happens when the store fails.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use omnimap::shm::SharedMemory;
use omnimap::store::{Faulty, MemoryStore, Misbehaviour};
use omnimap::{BackingStore, Error, MapOptions, Mapping, StoreError};
use omnimap_testkit::{in_child, pattern, pattern_store, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;

/// A mapping of 8 MiB with a budget of 1 MiB over a store that misbehaves as told.
fn mapping() -> (Arc<Faulty>, Mapping) {
    mapping_with(&mut MapOptions::new())
}

fn mapping_with(options: &mut MapOptions) -> (Arc<Faulty>, Mapping) {
    let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
    let mapping = options.budget(MIB).map_shared(store.clone()).unwrap();
    (store, mapping)
}

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

fn read(mapping: &Mapping, at: u64) -> Result<u8, Error> {
    let mut byte = [0];
    mapping.read_at(at, &mut byte)?;
    assert_eq!(byte[0], pattern(at));
    Ok(byte[0])
}

#[test]
fn e1_every_checked_access_says_object_offset_and_cause() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping();
        let at = 100 * page();
        store.on_read(at..at + 1, Misbehaviour::Fail, u64::MAX);
        let errors = [
            mapping.read_at(at, &mut [0; 10]).unwrap_err(),
            mapping.pin(at..at + 1).err().unwrap(),
            mapping.prefetch(at..at + 1).unwrap().wait().unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(matches!(error, Error::Read { offset, .. } if offset == at), "{error:?}");
            for part in ["pattern", &at.to_string(), "Input/output error"] {
                assert!(text.contains(part), "{text:?} says {part:?}");
            }
            assert_eq!(error.errno(), 5);
        }
        // Its neighbours are there all the same.
        read(&mapping, at - 1).unwrap();
        read(&mapping, at + page()).unwrap();
    });
}

#[test]
fn e1_the_offset_is_the_one_that_was_wanted() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping();
        let at = 100 * page() + 77;
        store.on_read(at..at + 1, Misbehaviour::Fail, u64::MAX);
        let error = mapping.read_at(at, &mut [0; 10]).unwrap_err();
        assert!(matches!(error, Error::Read { offset, .. } if offset == at), "{error}");
    });
}

#[test]
fn e3_a_page_that_failed_once_succeeds_at_the_next_access() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping();
        for (i, misbehaviour) in
            [Misbehaviour::Fail, Misbehaviour::Short, Misbehaviour::Panic].into_iter().enumerate()
        {
            let at = (100 + 10 * i as u64) * page();
            store.on_read(at..at + 1, misbehaviour, 1);
            assert!(read(&mapping, at).is_err(), "{misbehaviour:?}");
            read(&mapping, at).unwrap();
            assert_eq!(mapping[at as usize], pattern(at));
        }
    });
}

#[test]
fn e1_a_short_read_is_an_error_and_not_another_pages_data() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping();
        read(&mapping, 0).unwrap();
        store.on_read(MIB..2 * MIB, Misbehaviour::Short, u64::MAX);
        let error = read(&mapping, MIB + 5).unwrap_err();
        let Error::Read { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(**source, StoreError::Short { .. }), "{error}");
    });
}

#[test]
fn e1_a_store_that_panics_is_a_store_that_fails() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping();
        store.on_read(0..1, Misbehaviour::Panic, u64::MAX);
        let error = read(&mapping, 0).unwrap_err();
        assert!(error.to_string().contains("panicked: as the rule says"), "{error}");
        read(&mapping, 5 * page()).unwrap();
    });
}

#[test]
fn e1_a_store_that_panics_while_it_is_mapped_is_an_error() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    struct Panics(&'static str);
    impl BackingStore for Panics {
        fn name(&self) -> &str {
            assert_ne!(self.0, "name", "as told");
            "panics"
        }
        fn len(&self) -> u64 {
            assert_ne!(self.0, "len", "as told");
            MIB
        }
        fn version(&self) -> Option<omnimap::store::Version> {
            assert_ne!(self.0, "version", "as told");
            None
        }
        fn transfer(&self) -> omnimap::store::Transfer {
            assert_ne!(self.0, "transfer", "as told");
            Default::default()
        }
        fn chunk_at(&self, _: u64) -> std::ops::Range<u64> {
            assert_ne!(self.0, "chunk_at", "as told");
            0..MIB
        }
        fn read_at(&self, _: u64, into: &mut [u8]) -> Result<usize, StoreError> {
            Ok(into.len())
        }
    }
    within(LIMIT, || {
        for method in ["name", "len", "version"] {
            let error = MapOptions::new().map(Panics(method)).unwrap_err().to_string();
            assert!(error.contains("the store panicked"), "{method}: {error}");
        }
        for method in ["transfer", "chunk_at"] {
            let mapping = MapOptions::new().map(Panics(method)).unwrap();
            assert_eq!(mapping[5], 0);
            mapping.read_at(MIB / 2, &mut [0; 10]).unwrap();
        }
    });
}

#[test]
fn e1_a_store_that_does_not_answer_times_out() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping_with(MapOptions::new().fill_time_max(Duration::from_millis(200)));
        store.on_read(0..1, Misbehaviour::Hold, 1);
        let error = read(&mapping, 0).unwrap_err();
        assert!(matches!(error, Error::TimedOut { offset: 0, .. }), "{error}");
        assert!(mapping.pin(0..1).is_err(), "while it is still held");
        read(&mapping, 50 * page()).unwrap();
        store.release();
        while read(&mapping, 0).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_slow_fill_delays_no_other_page() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping();
        let mapping = Arc::new(mapping);
        // More than there are idle workers, raw and checked.
        let held: Vec<u64> = (0..12).map(|i| (10 + 20 * i) * page()).collect();
        for at in &held {
            store.on_read(*at..*at + 1, Misbehaviour::Hold, 1);
        }
        let threads: Vec<_> = held
            .iter()
            .enumerate()
            .map(|(i, at)| {
                let (mapping, at) = (mapping.clone(), *at);
                std::thread::spawn(move || {
                    if i % 2 == 0 { mapping[at as usize] } else { read(&mapping, at).unwrap() }
                })
            })
            .collect();
        assert!(store.wait_until_held(12, Duration::from_secs(20)), "all are under way at once");
        for i in 0..500 {
            let at = (1000 + i) * page();
            assert_eq!(mapping[at as usize], pattern(at));
            read(&mapping, at + 300 * page()).unwrap();
        }
        assert!(threads.iter().all(|t| !t.is_finished()));
        store.heal();
        for (thread, at) in threads.into_iter().zip(held) {
            assert_eq!(thread.join().unwrap(), pattern(at));
        }
    });
}

#[test]
fn a_store_that_blocks_for_seconds_is_waited_for() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = mapping();
        store.on_read(0..1, Misbehaviour::Block(Duration::from_secs(5)), 1);
        read(&mapping, 0).unwrap();
    });
}

#[test]
fn threads_that_wait_for_the_same_page_get_the_same_fill() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(omnimap::store::Counting::new(Arc::new(pattern_store(MIB))));
        let slow = Arc::new(Faulty::new(store.clone()));
        let mapping = Arc::new(MapOptions::new().budget(MIB).map_shared(slow.clone()).unwrap());
        slow.on_read(0..MIB, Misbehaviour::Hold, 1);
        let threads: Vec<_> = (0..16)
            .map(|i| {
                let mapping = mapping.clone();
                std::thread::spawn(move || if i % 2 == 0 { mapping[7] } else { read(&mapping, 7).unwrap() })
            })
            .collect();
        assert!(slow.wait_until_held(1, Duration::from_secs(20)));
        // All but the first join; those that wait in the kernel cannot be seen doing it, so give them time.
        std::thread::sleep(Duration::from_millis(100));
        slow.release();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), pattern(7));
        }
        assert_eq!(store.counts().reads, 1);
    });
}

/// Runs `touch` in a child, expects it to die by `signal`, and gives what it wrote to standard error.
fn dies(name: &str, signal: i32, touch: impl FnOnce()) -> Option<String> {
    let Some(output) = in_child(name, LIMIT) else {
        touch();
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(signal), "{:?} {errors}", output.status);
    Some(errors)
}

/// The lines that the library wrote.
fn lines(errors: &str) -> Vec<&str> {
    errors.lines().filter(|l| l.contains("omnimap:")).collect()
}

#[test]
fn e2_a_raw_access_that_fails_is_sigbus_after_one_line() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    for (name, misbehaviour, times) in
        [("e2_a_raw_access_that_fails_is_sigbus_after_one_line", Misbehaviour::Fail, u64::MAX)]
    {
        let errors = dies(name, SIGBUS, || {
            let (store, mapping) = mapping();
            store.on_read(3 * page()..3 * page() + 1, misbehaviour, times);
            assert_eq!(mapping[0], pattern(0));
            std::hint::black_box(mapping[3 * page() as usize + 5]);
            unreachable!("the access came back");
        });
        if let Some(errors) = errors {
            let lines = lines(&errors);
            assert_eq!(lines.len(), 1, "{errors}");
            for part in ["pattern", &format!("offset {}", 3 * page()), "Input/output error"] {
                assert!(lines[0].contains(part), "{lines:?} says {part:?}");
            }
        }
    }
}

#[test]
fn e2_a_failure_that_happens_once_is_sigbus_too() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    dies("e2_a_failure_that_happens_once_is_sigbus_too", SIGBUS, || {
        let (store, mapping) = mapping();
        store.on_read(0..1, Misbehaviour::Fail, 1);
        std::hint::black_box(mapping[5]);
    });
}

#[test]
fn e2_a_short_read_is_sigbus() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let errors = dies("e2_a_short_read_is_sigbus", SIGBUS, || {
        let (store, mapping) = mapping();
        store.on_read(0..1, Misbehaviour::Short, u64::MAX);
        std::hint::black_box(mapping[5]);
    });
    assert!(errors.is_none_or(|e| lines(&e).len() == 1));
}

#[test]
fn e2_no_answer_in_time_is_sigbus() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let errors = dies("e2_no_answer_in_time_is_sigbus", SIGBUS, || {
        let (store, mapping) = mapping_with(MapOptions::new().fill_time_max(Duration::from_millis(200)));
        store.on_read(0..1, Misbehaviour::Hold, 1);
        std::hint::black_box(mapping[5]);
    });
    assert!(errors.is_none_or(|e| lines(&e).len() == 1 && e.contains("no answer")));
}

#[test]
fn u03_access_after_unmap_is_sigsegv() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    dies("u03_access_after_unmap_is_sigsegv", SIGSEGV, || {
        let (_, mapping) = mapping();
        let address = mapping.as_ptr();
        assert_eq!(mapping[0], pattern(0));
        drop(mapping);
        // SAFETY: none: the access is what is tested, and ends this process.
        std::hint::black_box(unsafe { address.read_volatile() });
    });
}

#[test]
fn u03_a_thread_that_waits_in_a_range_that_is_unmapped_gets_sigsegv() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    dies("u03_a_thread_that_waits_in_a_range_that_is_unmapped_gets_sigsegv", SIGSEGV, || {
        let (store, mapping) = mapping();
        store.on_read(0..1, Misbehaviour::Hold, 1);
        let address = mapping.as_ptr().addr();
        let thread = std::thread::spawn(move || {
            // SAFETY: none: the access is what is tested, and ends this process.
            unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() }
        });
        mapping.as_ptr().expose_provenance();
        assert!(store.wait_until_held(1, Duration::from_secs(20)));
        drop(mapping);
        let _ = thread.join();
    });
}

#[test]
fn e4_a_file_that_was_written_to_is_an_error_and_never_a_mixture() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), (0..4 * MIB).map(pattern).collect::<Vec<_>>()).unwrap();
        let mapping = MapOptions::new().budget(MIB).open(file.path()).unwrap();
        read(&mapping, 0).unwrap();
        std::fs::write(file.path(), vec![0xEE; 4 * MIB as usize]).unwrap();
        read(&mapping, 0).expect("it is in memory still");
        let error = read(&mapping, 3 * MIB).unwrap_err();
        let Error::Read { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(**source, StoreError::Changed { .. }), "{error}");
    });
}

#[test]
fn m21_a_truncated_file_is_an_error_and_what_is_in_memory_stays() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), (0..4 * MIB).map(pattern).collect::<Vec<_>>()).unwrap();
        let mapping = MapOptions::new().budget(MIB).open(file.path()).unwrap();
        read(&mapping, 3 * MIB).unwrap();
        file.as_file().set_len(MIB).unwrap();
        read(&mapping, 3 * MIB).unwrap();
        assert_eq!(mapping[3 * MIB as usize], pattern(3 * MIB));
        let error = read(&mapping, 2 * MIB).unwrap_err().to_string();
        assert!(error.contains("4194304") && error.contains("1048576"), "{error}");
    });
}

#[test]
fn e2_a_truncated_file_is_sigbus_for_a_raw_access() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let errors = dies("e2_a_truncated_file_is_sigbus_for_a_raw_access", SIGBUS, || {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 4 * MIB as usize]).unwrap();
        let mapping = MapOptions::new().budget(MIB).open(file.path()).unwrap();
        file.as_file().set_len(0).unwrap();
        std::hint::black_box(mapping[0]);
    });
    assert!(errors.is_none_or(|e| lines(&e).len() == 1 && e.contains("changed since it was opened")));
}

#[test]
fn e4_a_store_that_gives_other_bytes_the_second_time_is_caught() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let bytes = Arc::new(MemoryStore::writable("changing", (0..4 * MIB).map(pattern).collect()));
        let mapping = MapOptions::new().budget(MIB).map_shared(bytes.clone()).unwrap();
        for at in (0..4 * MIB).step_by(512) {
            read(&mapping, at).unwrap();
        }
        bytes.write_at(0, &[pattern(0) ^ 1]).unwrap();
        let error = read(&mapping, 0).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
        bytes.write_at(0, &[pattern(0)]).unwrap();
        read(&mapping, 0).expect("E3: it is the old bytes again");
    });
}

#[test]
fn an_object_beyond_the_limit_of_file_sizes_is_an_error_and_no_signal() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    const NAME: &str = "an_object_beyond_the_limit_of_file_sizes_is_an_error_and_no_signal";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{output:?}");
        return;
    }
    for most in [1 << 20, 0] {
        let limit = rustix::process::Rlimit { current: Some(most), maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
        let store = MemoryStore::new("large", vec![0; 4 << 20]);
        let error = MapOptions::new().map_shared(Arc::new(store)).err().unwrap();
        assert_eq!(error.errno(), libc::EFBIG, "{error}");
        let error = SharedMemory::anonymous("large", 4 << 20).err().unwrap();
        assert_eq!(error.errno(), libc::EFBIG, "{error}");
    }
}
