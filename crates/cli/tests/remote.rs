//! Commands on URLs, with a web server on this machine.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use omnimap_testkit::{Misconduct, WebServer, pattern, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

fn omnimap() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omnimap"));
    command.env_remove("OMNIMAP_DISK_TIER");
    command
}

fn run(arguments: &[&str]) -> Output {
    let output = omnimap().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn bytes(length: u64) -> Vec<u8> {
    (0..length).map(pattern).collect()
}

fn with_server(length: u64, work: impl FnOnce(&WebServer, &Path) + Send + 'static) {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, move || {
        let server = WebServer::start(bytes(length));
        let directory = tempfile::tempdir().unwrap();
        work(&server, directory.path());
    });
}

#[test]
fn cat_and_stat_take_urls() {
    with_server(3 * MIB, |server, directory| {
        let url = &server.url();
        assert!(run(&["cat", url]).stdout == bytes(3 * MIB));
        assert!(
            run(&["cat", url, "--offset", "1MiB", "--length", "10"]).stdout
                == bytes(3 * MIB)[1 << 20..][..10]
        );
        let tier = directory.join("tier");
        let tier = tier.to_str().unwrap();
        run(&["cat", url, "--disk-tier", tier]);
        server.asked();
        assert!(run(&["cat", url, "--disk-tier", tier]).stdout == bytes(3 * MIB));
        let asked = server.asked();
        assert!(asked.iter().all(|asked| asked.method == "HEAD"), "{asked:?}");
        let told = String::from_utf8(run(&["stat", url, "--disk-tier", tier]).stdout).unwrap();
        for part in ["3 MiB (3145728 bytes)", "ETag \"version-1\"", "requests for ranges", "100.0 %"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let told = String::from_utf8(run(&["stat", &format!("plain+{url}")]).stdout).unwrap();
        assert!(told.contains("plain\n"), "{told}");
        let told = run(&["stat", url, "--json"]).stdout;
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        assert_eq!((&told["bytes"], &told["kept_bytes"]), (&(3 * MIB).into(), &serde_json::Value::Null));
    });
}

#[test]
fn cp_copies_to_a_file_or_into_a_directory() {
    with_server(5 * MIB + 3, |server, directory| {
        let url = &server.url();
        run(&["cp", url, directory.join("copy").to_str().unwrap()]);
        run(&["cp", url, directory.to_str().unwrap()]);
        run(&[
            "cp",
            &format!("file://{}", directory.join("copy").display()),
            directory.join("again").to_str().unwrap(),
        ]);
        for name in ["copy", "object", "again"] {
            assert!(std::fs::read(directory.join(name)).unwrap() == bytes(5 * MIB + 3), "{name}");
        }
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 3, "nothing else stays");
    });
}

/// In a URL a name ends at `?` and `#`; in a path those are letters as others are.
#[test]
fn cp_into_a_directory_keeps_the_whole_name_of_a_file() {
    if skip_without_mappings() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (to, file) = (directory.path().join("to"), directory.path().join("notes#2?.txt"));
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("notes"), b"another's").unwrap();
    std::fs::write(&file, b"new").unwrap();
    run(&["cp", file.to_str().unwrap(), to.to_str().unwrap()]);
    let url = format!("file://{}", directory.path().join("notes%232%3F.txt").display());
    std::fs::rename(to.join("notes#2?.txt"), to.join("first")).unwrap();
    run(&["cp", &url, to.to_str().unwrap()]);
    for (name, bytes) in [("notes", &b"another's"[..]), ("first", b"new"), ("notes#2?.txt", b"new")] {
        assert_eq!(std::fs::read(to.join(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 3);
}

fn start_copy(server: &WebServer, to: &Path) -> Child {
    omnimap().args(["cp", &server.url(), to.to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_copy_that_was_killed_goes_on_and_one_of_another_version_begins_anew() {
    with_server(160 * MIB, |server, directory| {
        let destination = directory.join("copy");
        let note = directory.join(".copy.omnimap-part.of");
        let begin_and_kill = || {
            let mut child = start_copy(server, &destination);
            let begin = Instant::now();
            while !note.exists() {
                assert!(begin.elapsed() < LIMIT / 4, "nothing was noted");
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(!destination.exists(), "not before all is there");
        };
        begin_and_kill();
        server.asked();
        assert!(start_copy(server, &destination).wait().unwrap().success());
        assert!(std::fs::read(&destination).unwrap() == bytes(160 * MIB));
        let fetched: u64 =
            server.asked().iter().filter_map(|asked| asked.range.clone()).map(|r| r.end - r.start).sum();
        assert!(fetched <= 110 * MIB, "{fetched} bytes, of which 64 MiB were there");
        std::fs::remove_file(&destination).unwrap();
        begin_and_kill();
        server.replace(Some(vec![9; 80 << 20]));
        assert!(start_copy(server, &destination).wait().unwrap().success());
        assert!(std::fs::read(&destination).unwrap() == vec![9; 80 << 20]);
        assert!(!note.exists());
    });
}

#[test]
fn what_goes_wrong_is_said_and_leaves_nothing() {
    with_server(MIB, |server, directory| {
        let refused = |arguments: &[&str]| {
            let output = omnimap().args(arguments).output().unwrap();
            assert!(!output.status.success(), "{arguments:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        server.misbehave(Misconduct::Status(403), 1);
        let told = refused(&["cp", &server.url(), directory.join("copy").to_str().unwrap()]);
        assert!(told.contains("signature"), "{told}");
        assert!(refused(&["cat", "s3://bucket"]).contains("no object"));
        assert!(refused(&["patch", &server.url(), "0", "x"]).contains("S3, Google"));
        assert!(
            refused(&["export", &server.url(), directory.join("x").to_str().unwrap()]).contains("no changes")
        );
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
        assert!(omnimap().args(["diff", &server.url()]).status().unwrap().success(), "nothing was changed");
    });
}
