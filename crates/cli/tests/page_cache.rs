//! `omnimap resident`, `touch`, `evict` and `lock`, on files of this disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use omnimap::machine::page_bytes;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// Not in /tmp, which may be memory, that nobody can drop.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn omnimap(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnimap")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(arguments: &[&str]) -> Value {
    let output = omnimap(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Writes whole pages, on disk and not dirty.
fn write(path: &Path, pages: u64) {
    fs::write(path, vec![7; (pages * page_bytes()) as usize]).unwrap();
    fs::File::open(path).unwrap().sync_all().unwrap();
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn l05_pages_are_touched_evicted_and_counted() {
    let directory = directory();
    let file = directory.path().join("file");
    write(&file, 100);
    let evicted = json(&["evict", "--json", name(&file)]);
    assert_eq!((&evicted["pages"], &evicted["pages_resident"]), (&100.into(), &0.into()), "{evicted}");
    assert_eq!(evicted["pages_evicted"], evicted["pages_resident_before"]);
    assert!(evicted["pages_evicted"].as_u64() > Some(0), "what was written was in memory");
    let touched = json(&["touch", "--json", name(&file)]);
    assert_eq!((&touched["pages_touched"], &touched["pages_resident"]), (&100.into(), &100.into()));
    assert_eq!(touched["bytes_resident"], 100 * page_bytes());
    let range = format!("{}-{}", 40 * page_bytes() + 1, 50 * page_bytes());
    let part = json(&["evict", "--json", "-p", &range, name(&file)]);
    assert_eq!((&part["pages"], &part["pages_evicted"]), (&10.into(), &10.into()), "{part}");
    let shown = text(&omnimap(&["resident", "-v", "-p", "400k", name(&file)]).stdout);
    if page_bytes() == 4096 {
        let drawn = shown.lines().nth(1).unwrap();
        assert_eq!(drawn, format!("[{}      {}] 90/100", "O".repeat(24), "O".repeat(30)));
    }
}

#[test]
fn dirty_pages_are_evicted_when_they_may_be_written() {
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, vec![7; 10 * page_bytes() as usize]).unwrap();
    let synced = json(&["evict", "--json", "--sync", name(&file)]);
    assert_eq!((&synced["pages_resident"], &synced["pages"]), (&0.into(), &10.into()));
}

fn tree() -> tempfile::TempDir {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    write(&at("a/one.bin"), 1);
    write(&at("a/b/two.bin"), 2);
    write(&at("a/b/four.log"), 4);
    write(&at("a/b/empty"), 0);
    fs::hard_link(at("a/b/two.bin"), at("a/two again.bin")).unwrap();
    symlink("../one.bin", at("a/b/link")).unwrap();
    symlink("..", at("a/b/loop")).unwrap();
    write(&at("eight"), 8);
    directory
}

#[test]
fn files_are_found_and_each_is_counted_once() {
    let directory = tree();
    let all = name(directory.path());
    let counted = |options: &[&str]| {
        let mut arguments = vec!["resident", "--json"];
        arguments.extend(options);
        arguments.push(all);
        let told = json(&arguments);
        (told["files"].as_u64().unwrap(), told["pages"].as_u64().unwrap())
    };
    assert_eq!(counted(&[]), (5, 1 + 2 + 4 + 8));
    assert_eq!(counted(&["--hard-links"]), (6, 1 + 2 + 2 + 4 + 8));
    assert_eq!(counted(&["-m", &(4 * page_bytes()).to_string()]), (4, 1 + 2 + 4));
    assert_eq!(counted(&["-i", "*.log", "-i", "eight"]), (3, 1 + 2));
    assert_eq!(counted(&["--ignore", "b"]), (3, 1 + 2 + 8), "the other name of two.bin");
    assert_eq!(counted(&["-I", "*.log", "--only", "o*.bin"]), (2, 1 + 4));
    assert_eq!(counted(&["-p", &(2 * page_bytes()).to_string()]), (5, 1 + 2 + 2 + 2));
    let told = json(&["resident", "--json", "-v", all]);
    assert_eq!((&told["directories"], &told["links_skipped"]), (&3.into(), &2.into()));
    assert_eq!(told["listed"].as_array().unwrap().len(), 5);
}

#[test]
fn symbolic_links_are_followed_when_told_and_loops_end() {
    let directory = tree();
    let b = directory.path().join("a/b");
    let without = json(&["resident", "--json", name(&b)]);
    assert_eq!((&without["files"], &without["pages"]), (&3.into(), &6.into()));
    let output = omnimap(&["resident", "--json", "-f", name(&b)]);
    let followed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&followed["files"], &followed["pages"]), (&4.into(), &7.into()), "{followed}");
    assert!(!output.status.success() && text(&output.stderr).contains("a loop of symbolic links"));
    let link = omnimap(&["resident", name(&b.join("link"))]);
    assert!(!link.status.success() && text(&link.stderr).contains("-f follows it"));
    assert_eq!(json(&["resident", "--json", "-f", name(&b.join("link"))])["pages"], 1);
}

#[test]
fn names_are_read_from_a_list() {
    let directory = tree();
    let list = directory.path().join("list");
    let names = ["eight", "a/one.bin"].map(|n| name(&directory.path().join(n)).to_owned());
    for (end, option) in [("\n", None), ("\0", Some("-0"))] {
        fs::write(&list, names.join(end)).unwrap();
        let mut arguments = vec!["resident", "--json", "-b", name(&list)];
        arguments.extend(option);
        assert_eq!(json(&arguments)["pages"], 9);
    }
}

#[test]
fn what_is_missing_is_said_and_the_rest_is_done() {
    let directory = tree();
    let eight = directory.path().join("eight");
    let output = omnimap(&["touch", "/no/such/file", name(&eight)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/no/such/file: No such file"), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("8/8 pages"), "{}", text(&output.stdout));
    let quiet = omnimap(&["touch", "-q", "/no/such/file", name(&eight)]);
    assert!(quiet.status.code() == Some(1) && quiet.stdout.is_empty() && quiet.stderr.is_empty());
    for wrong in [["-p", "5k-4k"], ["-i", "[z"], ["-m", "much"]] {
        let refused = omnimap(&["resident", wrong[0], wrong[1], "/tmp"]);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
    }
}

fn locked_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmLck")).unwrap_or("VmLck: 0 kB");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(process: u32, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_raw(process as i32).unwrap();
    rustix::process::kill_process(process, signal).unwrap();
}

/// Ends with the test, whatever becomes of it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn l01_lock_keeps_files_in_memory_until_a_signal() {
    let directory = directory();
    let (file, pid_file) = (directory.path().join("file"), directory.path().join("pid"));
    write(&file, 16);
    json(&["evict", "--json", name(&file)]);
    let mut lock = Ended(
        Command::new(env!("CARGO_BIN_EXE_omnimap"))
            .args(["lock", "-P", name(&pid_file), name(&file)])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let process = lock.0.id();
    until("it stays", || fs::read_to_string(&pid_file).is_ok_and(|p| p == format!("{process}\n")));
    assert_eq!(locked_kib(process), 16 * page_bytes() / 1024);
    let evicted = json(&["evict", "--json", name(&file)]);
    assert_eq!((&evicted["pages_evicted"], &evicted["pages_resident"]), (&0.into(), &16.into()));
    signal(process, rustix::process::Signal::TERM);
    until("it ends", || lock.0.try_wait().unwrap().is_some());
    assert!(lock.0.try_wait().unwrap().unwrap().success() && !pid_file.exists());
    assert_eq!(json(&["evict", "--json", name(&file)])["pages_resident"], 0);
}

#[test]
fn l01_lock_comes_back_when_a_process_in_the_background_has_locked() {
    let directory = directory();
    let (file, pid_file) = (directory.path().join("file"), directory.path().join("pid"));
    write(&file, 16);
    let output = omnimap(&["lock", "-vd", "-P", name(&pid_file), "--", name(&file)]);
    let process: u32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let locked = locked_kib(process);
    signal(process, rustix::process::Signal::TERM);
    assert_eq!(locked, 16 * page_bytes() / 1024);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("16 pages"), "{}", text(&output.stdout));
    until("it ends", || !pid_file.exists());
    let failed = omnimap(&["lock", "-d", "/no/such/file"]);
    assert!(failed.status.code() == Some(1) && text(&failed.stderr).contains("No such file"));
}

/// The command, as nobody runs it: root may lock and look at what it likes.
fn as_nobody(shell: &str, arguments: &[&str]) -> (tempfile::TempDir, Command) {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program: PathBuf = place.path().join("omnimap");
    // Not by this process: what it has open to be written, a child that is just being started has too (ETXTBSY).
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_omnimap")).arg(&program).status().unwrap();
    assert!(copied.success());
    let mut command = Command::new("sh");
    command.args(["-c", shell]).arg(&program).args(arguments).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    (place, command)
}

#[test]
fn l01_a_limit_of_locked_memory_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (small, large) = (directory.path().join("small"), directory.path().join("large"));
    write(&small, 4);
    write(&large, 64);
    if rustix::process::geteuid().is_root() {
        for file in [&small, &large] {
            std::os::unix::fs::chown(file, Some(65534), None).unwrap();
        }
    }
    let kib = 20 * page_bytes() / 1024;
    let shell = format!("ulimit -l {kib}; exec \"$0\" \"$@\"");
    let (_place, mut command) = as_nobody(&shell, &["lock", name(&small), name(&large)]);
    let output = command.output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let wanted = format!("{} KiB would be locked", 68 * page_bytes() / 1024);
    for part in [name(&large), &wanted, &format!("{kib} KiB"), "RLIMIT_MEMLOCK", "ulimit -l", "CAP_IPC_LOCK"]
    {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    assert_eq!(errors.lines().count(), 1, "{errors}");
    let soft = format!("ulimit -H -l 4096; ulimit -S -l {kib}; exec timeout -s INT 2 \"$0\" \"$@\"");
    let (_place, mut command) = as_nobody(&soft, &["lock", name(&small), name(&large)]);
    let raised = command.output().unwrap();
    assert!(text(&raised.stdout).contains("68 pages"), "the soft limit is raised: {}", text(&raised.stderr));
}

#[test]
fn l05_it_is_said_when_the_kernel_does_not_tell() {
    if !rustix::process::geteuid().is_root() {
        omnimap_testkit::skip("a file of somebody else needs root");
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let (_place, mut command) = as_nobody("exec \"$0\" \"$@\"", &["resident", name(file.path())]);
    fs::write(file.path(), vec![7; page_bytes() as usize]).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("mincore"), "{}", text(&output.stderr));
    let own = omnimap(&["resident", name(file.path())]);
    assert!(own.stderr.is_empty(), "{}", text(&own.stderr));
}
