//! `omnimap maps`, looking at this process and at its child.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::Duration;

use omnimap::machine::{ObjectKind, mapped_ranges, page_bytes};
use omnimap::posix::{self, MapFlags, Prot};
use omnimap::shm::SharedMemory;
use omnimap::store::MemoryStore;
use omnimap::{Advice, MapOptions};
use omnimap_testkit::{in_child, skip_without_mappings, within};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

fn maps(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnimap")).arg("maps").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is said of an object that this process has mapped.
fn of(object: &str) -> Vec<Value> {
    of_process(std::process::id(), object)
}

fn of_process(process: u32, object: &str) -> Vec<Value> {
    let output = maps(&["--json", &process.to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["processes"][0]["process"], process);
    let all = told["processes"][0]["mappings"].as_array().unwrap().clone();
    all.into_iter().filter(|mapping| mapping["object"] == object).collect()
}

#[test]
fn a_read_mapping_is_told_with_what_is_in_memory() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let page = page_bytes();
        let store = MemoryStore::new("read me: \"1\"", vec![7; 100 * page as usize]);
        let mapping = MapOptions::new().budget(64 * page).advice(Advice::Random).map(store).unwrap();
        for index in [3, 4, 50] {
            std::hint::black_box(mapping[(index * page) as usize]);
        }
        let told = of("read me: \"1\"");
        assert_eq!(told.len(), 1, "{told:?}");
        let told = &told[0];
        assert_eq!(told["start"], mapping.as_ptr() as u64);
        assert_eq!(told["end"], mapping.as_ptr() as u64 + 100 * page);
        assert_eq!((&told["protection"], &told["sharing"]), (&"r--".into(), &"shared".into()));
        assert_eq!((&told["kind"], &told["offset"]), (&"paged".into(), &0.into()));
        assert_eq!((&told["resident_bytes"], &told["dirty_bytes"]), (&(3 * page).into(), &0.into()));
        assert_eq!((&told["locked_bytes"], &told["private_bytes"]), (&0.into(), &0.into()));
        drop(mapping);
        assert!(of("read me: \"1\"").is_empty());
    });
}

#[test]
fn a_part_that_is_stored_to_is_told_with_what_is_dirty() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let page = page_bytes();
        let store = MemoryStore::writable("stored to", vec![7; 100 * page as usize]);
        let mut options = MapOptions::new();
        options.budget(64 * page).dirty_max(64 * page).advice(Advice::Random);
        let mapping = options.offset(10 * page).length(30 * page).map_shared_mut(store).unwrap();
        for index in [0, 1, 29] {
            mapping.cells()[(index * page) as usize].store(1, Ordering::Relaxed);
        }
        std::hint::black_box(mapping.cells()[5 * page as usize].load(Ordering::Relaxed));
        let told = of("stored to");
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((&told[0]["protection"], &told[0]["offset"]), (&"rw-".into(), &(10 * page).into()));
        assert_eq!(
            (&told[0]["resident_bytes"], &told[0]["dirty_bytes"]),
            (&(4 * page).into(), &(3 * page).into())
        );
        // Looking at ourselves takes nothing away that others need to look at us.
        let own = mapped_ranges(std::process::id()).unwrap();
        let own = own.iter().find(|range| range.object == "stored to").unwrap();
        assert_eq!((own.kind, own.dirty_bytes), (Some(ObjectKind::Paged), Some(3 * page)));
        mapping.sync().unwrap();
        assert_eq!(of("stored to")[0]["dirty_bytes"], 0);
        mapping.write_at(7 * page, &vec![1; 2 * page as usize]).unwrap();
        assert_eq!(of("stored to")[0]["dirty_bytes"], 2 * page);
        mapping.resize(12 * page).unwrap();
        assert_eq!(of("stored to")[0]["dirty_bytes"], 0, "what was dirty is cut off");
    });
}

#[test]
fn private_and_locked_bytes_are_told() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let page = page_bytes();
        let store = MemoryStore::new("private view", vec![7; 16 * page as usize]);
        let object = MapOptions::new().budget(64 * page).object(std::sync::Arc::new(store)).unwrap();
        let (length, prot) = (16 * page as usize, Prot::READ | Prot::WRITE);
        // SAFETY: a new mapping at a place of the kernel's choice; used here, and nowhere else.
        let start = unsafe { posix::mmap(std::ptr::null_mut(), length, prot, MapFlags::PRIVATE, &object, 0) };
        let start = start.unwrap();
        for index in [1, 2] {
            // SAFETY: inside the mapping, which is writable.
            unsafe { start.cast::<u8>().wrapping_add(index * page as usize).write_volatile(1) };
        }
        posix::mlock(start, 4 * page as usize).unwrap();
        let told = of("private view");
        let private: Vec<_> = told.iter().filter(|mapping| mapping["sharing"] == "private").collect();
        let sum = |name: &str| private.iter().map(|mapping| mapping[name].as_u64().unwrap()).sum::<u64>();
        // Locking takes copies of what may be stored to, as the kernel does with any private mapping.
        assert_eq!(sum("private_bytes"), 4 * page, "{told:?}");
        assert!(sum("locked_bytes") > 0, "{told:?}");
        // SAFETY: mapped above, and not used any more.
        unsafe { posix::munmap(start, length) }.unwrap();
    });
}

#[test]
fn i1_shared_memory_is_told_by_name() {
    let name = format!("/omnimap-maps-{}", std::process::id());
    let named = SharedMemory::create(&name, 8 * page_bytes(), 0o600).unwrap();
    let anonymous = SharedMemory::anonymous("no name", 4 * page_bytes()).unwrap();
    named.write(0, &1u8).unwrap();
    SharedMemory::unlink(&name).unwrap();
    let told = of(&format!("/dev/shm{name} (deleted)"));
    assert_eq!((told.len(), &told[0]["kind"]), (1, &"kernel".into()), "{told:?}");
    assert_eq!((&told[0]["resident_bytes"], &told[0]["dirty_bytes"]), (&page_bytes().into(), &Value::Null));
    let told = of("no name");
    assert_eq!((told.len(), &told[0]["kind"], &told[0]["resident_bytes"]), (1, &"kernel".into(), &0.into()));
    drop((named, anonymous));
    assert!(of("no name").is_empty());
}

/// A child shows what its parent showed, and who serves it says what is dirty.
#[test]
fn f01_a_forked_child_is_told_with_what_its_parent_serves() {
    if skip_without_mappings() {
        return;
    }
    let Some(output) = in_child("f01_a_forked_child_is_told_with_what_its_parent_serves", LIMIT) else {
        let page = page_bytes();
        let store = MemoryStore::writable("inherited", vec![7; 16 * page as usize]);
        let mut options = MapOptions::new();
        let object =
            options.budget(64 * page).dirty_max(64 * page).object_mut(std::sync::Arc::new(store)).unwrap();
        let (length, prot) = (16 * page as usize, Prot::READ | Prot::WRITE);
        // SAFETY: a new mapping at a place of the kernel's choice; used here, and nowhere else.
        let start = unsafe { posix::mmap(std::ptr::null_mut(), length, prot, MapFlags::SHARED, &object, 0) };
        let start = start.unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        // fork returns in the parent before the child's mappings are made, and in the child after that.
        let (mut ready, forked) = std::io::pipe().unwrap();
        // SAFETY: the child writes to a pipe, reads from another and ends.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            drop(writer);
            let _ = rustix::io::write(&forked, &[1]);
            let _ = rustix::io::read(&reader, &mut [0u8; 1]);
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        std::io::Read::read_exact(&mut ready, &mut [0]).unwrap();
        // SAFETY: inside the mapping, which is writable.
        unsafe { start.cast::<u8>().wrapping_add(page as usize).write_volatile(1) };
        let told = of_process(child as u32, "inherited");
        let facts: Vec<_> = told.iter().map(|m| (m["start"].clone(), m["dirty_bytes"].clone())).collect();
        assert_eq!(facts, [((start as u64).into(), page.into())], "{told:?}");
        drop(writer);
        // SAFETY: waits for the child just made.
        assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn all_processes_are_listed_and_errors_say_which_is_meant() {
    let _memory = SharedMemory::anonymous("among all", page_bytes()).unwrap();
    let output = maps(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (shown, process) = (text(&output.stdout), std::process::id());
    assert!(shown.lines().any(|line| line.starts_with(&format!("{process} "))), "{shown}");
    let line = shown.lines().find(|line| line.ends_with("among all")).unwrap();
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    assert_eq!(
        words[..11],
        ["rw-", "shared", "kernel", "0", "B", "0", "B", "-", "0", "B", "among"],
        "{line}"
    );
    let nobody = maps(&["4194304"]);
    assert!(!nobody.status.success() && text(&nobody.stderr).contains("no process 4194304"));
    // A process that has mapped nothing.
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let none = maps(&["--json", &other.id().to_string()]);
    let told: Value = serde_json::from_slice(&none.stdout).unwrap();
    assert_eq!(told["processes"][0]["mappings"].as_array().map(Vec::len), Some(0));
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_process_of_somebody_else_is_refused_with_what_to_do() {
    if !rustix::process::geteuid().is_root() {
        omnimap_testkit::skip("a process of somebody else needs root");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("omnimap");
    // Not by this process: what it has open to be written, a child that is just being started has too (ETXTBSY).
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_omnimap")).arg(&program).status().unwrap();
    assert!(copied.success());
    let process = std::process::id().to_string();
    let as_nobody = |arguments: &[&str]| {
        Command::new(&program).arg("maps").args(arguments).uid(65534).gid(65534).output().unwrap()
    };
    let refused = as_nobody(&[&process]);
    let errors = text(&refused.stderr);
    assert!(!refused.status.success() && errors.contains(&process) && errors.contains("owner"), "{errors}");
    assert!(as_nobody(&[]).status.success(), "what may not be looked at is left out");
}
