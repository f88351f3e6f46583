//! New versions of objects: whole, under a condition, and nothing is lost when it does not hold.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use omnimap::store::{BackingStore, conformance};
use omnimap::{MapOptions, WorkingCopy};
use omnimap_testkit::{Prng, skip_without_mappings, within};

use crate::server::{S3, options, url};
use crate::{LIMIT, MIB, bytes, start_victim, told_victim};

/// Runs with a server of `length` bytes and a directory for changes, or skips.
fn with_object(length: u64, work: impl FnOnce(&S3, &mut MapOptions, &Path) + Send + 'static) {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, move || {
        let s3 = S3::start();
        s3.put("object", &bytes(length));
        let directory = tempfile::tempdir().unwrap();
        let mut map = MapOptions::new();
        map.remote(s3.options()).budget(4 * MIB).changes(directory.path());
        work(&s3, &mut map, directory.path());
    });
}

#[test]
fn what_is_stored_becomes_a_new_version_at_the_sync() {
    with_object(10 * MIB + 5, |s3, map, _| {
        let mut expected = bytes(10 * MIB + 5);
        let mut mapping = map.open_mut(url("object")).unwrap();
        for round in 0..3u64 {
            let mut random = Prng::new(round);
            for _ in 0..500 {
                let at = random.below(10 * MIB + 5) as usize;
                let value = random.next_u64() as u8;
                mapping[at] = value;
                expected[at] = value;
            }
            assert!(round > 0 || s3.get("object") == bytes(10 * MIB + 5), "not before");
            mapping.sync().unwrap();
            assert!(s3.get("object") == expected, "round {round}");
        }
        drop(mapping);
        assert!(map.open(url("object")).unwrap()[..] == expected);
    });
}

#[test]
fn what_no_sync_has_published_is_given_up() {
    with_object(4 * MIB, |s3, map, directory| {
        let mut mapping = map.open_mut(url("object")).unwrap();
        mapping.fill(1);
        drop(mapping);
        assert!(s3.get("object") == bytes(4 * MIB));
        assert_eq!(WorkingCopy::kept(&url("object"), directory).unwrap(), None);
        assert!(map.open_mut(url("object")).unwrap()[..] == bytes(4 * MIB));
    });
}

#[test]
fn of_a_large_object_only_the_parts_with_changes_go_over_the_link() {
    with_object(100 * MIB, |s3, map, _| {
        let link = s3.far();
        let mut mapping = map.remote(options(link.address())).open_mut(url("object")).unwrap();
        let mut expected = bytes(100 * MIB);
        for at in [5, 50 << 20] {
            mapping[at] = 99;
            expected[at] = 99;
        }
        link.bytes_sent();
        mapping.sync().unwrap();
        let sent = link.bytes_sent();
        assert!(s3.get("object") == expected);
        assert!(sent < 18 * MIB, "{sent} bytes for two parts of 8 MiB");
    });
}

#[test]
fn a_conflict_loses_nothing_on_either_side() {
    for length in [MIB, 40 * MIB] {
        with_object(length, move |s3, map, directory| {
            let mut mapping = map.open_mut(url("object")).unwrap();
            mapping[1000] = 1;
            mapping[length as usize - 1] = 2;
            let others = vec![7; length as usize + 3];
            s3.put("object", &others);
            let told = mapping.sync().unwrap_err().to_string();
            assert!(told.contains("is kept in"), "{told}");
            assert!(s3.get("object") == others, "theirs stays");
            assert_eq!((mapping[1000], mapping[length as usize - 1]), (1, 2), "and ours");
            drop(mapping);
            let kept = WorkingCopy::kept(&url("object"), directory).unwrap().expect("kept");
            assert_eq!((kept.length, kept.version_bytes), (length, length));
            let data = std::fs::File::open(&kept.data).unwrap();
            for (at, value) in [(1000, 1), (length - 1, 2)] {
                assert!(kept.ranges.iter().any(|range| range.contains(&at)), "{:?}", kept.ranges);
                let mut byte = [0];
                std::os::unix::fs::FileExt::read_exact_at(&data, &mut byte, at).unwrap();
                assert_eq!(byte, [value]);
            }
            let told = map.open_mut(url("object")).expect_err("in conflict still").to_string();
            assert!(told.contains("omnimap export"), "{told}");
            WorkingCopy::discard(&url("object"), directory).unwrap();
            assert!(map.open_mut(url("object")).unwrap()[..] == others);
        });
    }
}

/// Others write when all has been looked at, and only the last request is left: its condition alone finds that out.
#[test]
fn a_conflict_in_the_last_moment_loses_nothing_either() {
    if skip_without_mappings() {
        return;
    }
    for (length, last) in [(MIB, "PUT "), (40 * MIB, "POST ")] {
        within(LIMIT, move || {
            let s3 = Arc::new(S3::start());
            s3.put("object", &bytes(length));
            let link = s3.far();
            let directory = tempfile::tempdir().unwrap();
            let copy = WorkingCopy::open(&url("object"), &options(link.address()), directory.path()).unwrap();
            copy.write_at(1000, b"mine").unwrap();
            let others = s3.clone();
            let completes =
                move |line: &str| line.starts_with(last) && (last == "PUT " || line.contains("uploadId="));
            link.on_request(move |line| {
                if completes(line) {
                    others.put("object", b"theirs");
                }
            });
            let told = copy.sync().unwrap_err().to_string();
            assert!(told.contains("is kept in"), "{told}");
            assert_eq!(s3.get("object"), b"theirs");
            let kept = WorkingCopy::kept(&url("object"), directory.path()).unwrap().expect("kept");
            assert_eq!(kept.length, length);
        });
    }
}

#[test]
fn an_object_is_made_longer_and_shorter() {
    with_object(3 * MIB + 100, |s3, map, _| {
        let mut mapping = map.open_mut(url("object")).unwrap();
        let mut expected = bytes(3 * MIB + 100);
        for length in [5 * MIB + 7, 2 * MIB + 1, 2 * MIB + 4096, 20 * MIB, 10] {
            mapping.resize(length).unwrap();
            expected.resize(length as usize, 0);
            mapping[length as usize - 1] = 3;
            expected[length as usize - 1] = 3;
            mapping.sync().unwrap();
            assert!(s3.get("object") == expected, "{length}");
        }
    });
}

#[test]
fn only_one_process_or_mapping_stores_to_an_object_at_a_time() {
    with_object(MIB, |_, map, _| {
        let first = map.open_mut(url("object")).unwrap();
        let told = map.open_mut(url("object")).expect_err("refused").to_string();
        assert!(told.contains("only one"), "{told}");
        drop(first);
        map.open_mut(url("object")).unwrap();
    });
}

#[test]
fn a_working_copy_is_a_store() {
    within(LIMIT, || {
        let s3 = S3::start();
        s3.put("object", &bytes(MIB));
        let directory = tempfile::tempdir().unwrap();
        let copy = WorkingCopy::open(&url("object"), &s3.options(), directory.path()).unwrap();
        conformance::check_write(&copy);
    });
}

/// A process is killed while it syncs; the object is one version or the other, and the next opening finishes what was begun.
#[test]
fn kills_during_a_sync_leave_one_version_or_the_other() {
    let name = "writing::kills_during_a_sync_leave_one_version_or_the_other";
    if skip_without_mappings() {
        return;
    }
    if let Some((address, directory)) = told_victim() {
        let mut map = MapOptions::new();
        map.remote(options(address)).changes(directory);
        let mut mapping = map.open_mut(url("object")).unwrap();
        loop {
            let next = mapping[0].wrapping_add(1);
            mapping.fill(next);
            mapping.sync().unwrap();
        }
    }
    within(LIMIT, move || {
        let s3 = S3::start();
        let length = 18 * MIB;
        s3.put("object", &vec![0; length as usize]);
        let directory = tempfile::tempdir().unwrap();
        let mut random = Prng::new(3);
        let rounds = if std::env::var_os("OMNIMAP_LONG").is_some() { 100 } else { 8 };
        for round in 0..rounds {
            let mut victim = start_victim(name, s3.address(), directory.path());
            std::thread::sleep(Duration::from_millis(100 + random.below(700)));
            assert!(victim.try_wait().unwrap().is_none(), "round {round}: it ended by itself");
            victim.kill().unwrap();
            victim.wait().unwrap();
            let found = s3.get("object");
            assert_eq!(found.len() as u64, length);
            assert!(found.iter().all(|byte| *byte == found[0]), "round {round}: a mixture");
            let mut map = MapOptions::new();
            let mapping = map.remote(s3.options()).changes(directory.path()).open_mut(url("object")).unwrap();
            let next = [found[0], found[0].wrapping_add(1)];
            assert!(
                next.contains(&mapping[0]) && mapping.iter().all(|byte| *byte == mapping[0]),
                "round {round}"
            );
            drop(mapping);
            assert_eq!(WorkingCopy::kept(&url("object"), directory.path()).unwrap(), None, "it is finished");
        }
    });
}

/// What is written while a sync uploads belongs to the next one; and so it does when the upload fails.
#[test]
fn what_is_written_during_a_sync_is_not_lost_and_not_part_of_it() {
    within(LIMIT, || {
        let s3 = S3::start();
        s3.put("object", &vec![0; 20 << 20]);
        let link = s3.far();
        let directory = tempfile::tempdir().unwrap();
        let copy = WorkingCopy::open(&url("object"), &options(link.address()), directory.path()).unwrap();
        let page = |value| vec![value; 4096];
        let (told, uploads) = std::sync::mpsc::channel();
        link.on_request(move |request| {
            if ["PUT", "POST"].iter().any(|method| request.starts_with(method)) {
                let _nobody_waits_at_the_end = told.send(());
            }
        });
        for round in 1..4u8 {
            copy.write_at(0, &page(round)).unwrap();
            copy.write_at(12 << 20, &page(round)).unwrap();
            std::thread::scope(|scope| {
                while uploads.try_recv().is_ok() {}
                let syncing = scope.spawn(|| copy.sync());
                uploads.recv_timeout(LIMIT).unwrap();
                assert!(!syncing.is_finished(), "it is too fast for this test");
                copy.write_at(0, &page(100 + round)).unwrap();
                copy.write_at(4096, &page(100 + round)).unwrap();
                copy.write_at(5_000_001, &[round]).unwrap();
                syncing.join().unwrap().unwrap();
            });
            let published = s3.get("object");
            assert_eq!((published[0], published[12 << 20]), (round, round));
            assert_ne!(published[4096], 100 + round);
            let mut bytes = [0; 1];
            for (at, value) in [(0, 100 + round), (4096, 100 + round), (12 << 20, round), (5_000_001, round)]
            {
                copy.read_at(at, &mut bytes).unwrap();
                assert_eq!(bytes[0], value, "round {round}, at {at}");
            }
        }
        // A sync that fails, more writes, and one that succeeds.
        drop(link);
        let mine = WorkingCopy::open(&url("object"), &s3.options(), &directory.path().join("other")).unwrap();
        mine.write_at(4096, &page(1)).unwrap();
        mine.write_at(8192, &page(1)).unwrap();
        let current = s3.get("object");
        s3.put("object", &vec![9; 20 << 20]);
        mine.sync().unwrap_err();
        mine.write_at(8192, &page(2)).unwrap();
        mine.write_at(1 << 20, &page(2)).unwrap();
        mine.sync().unwrap_err();
        let kept = WorkingCopy::kept(&url("object"), &directory.path().join("other")).unwrap().unwrap();
        let told: Vec<u64> = kept.ranges.iter().map(|range| range.start).collect();
        assert!(kept.ranges.contains(&(4096..3 * 4096)) && told == [4096, 1 << 20], "{told:?}");
        let data = std::fs::read(kept.data).unwrap();
        assert_eq!((data[4096], data[8192], data[1 << 20]), (1, 2, 2), "all of it is kept");
        assert!(s3.get("object").iter().all(|byte| *byte == 9) && current.len() == 20 << 20);
    });
}

#[test]
fn what_others_noted_of_an_object_stays() {
    use object_store::{Attribute, ObjectStore, ObjectStoreExt, PutOptions};
    within(LIMIT, || {
        let s3 = S3::start();
        let key = object_store::path::Path::from("object");
        let noted = [(Attribute::ContentType, "text/csv"), (Attribute::Metadata("owner".into()), "me")];
        for length in [MIB, 20 * MIB] {
            let options =
                PutOptions { attributes: noted.clone().into_iter().collect(), ..PutOptions::default() };
            s3.wait(async |client| client.put_opts(&key, bytes(length).into(), options).await.unwrap());
            let directory = tempfile::tempdir().unwrap();
            let copy = WorkingCopy::open(&url("object"), &s3.options(), directory.path()).unwrap();
            copy.write_at(7, b"x").unwrap();
            copy.sync().unwrap();
            let found = s3.wait(async |client| client.get(&key).await.unwrap().attributes);
            for (name, value) in &noted {
                assert_eq!(found.get(name).map(AsRef::as_ref), Some(*value), "of {length} bytes");
            }
        }
    });
}
