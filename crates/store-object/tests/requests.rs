//! What a store asks a server for, and what it makes of the answers, the wrong ones too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use omnimap_store::{BackingStore, ReadAt, Result, StoreError, conformance};
use omnimap_store_object::{RemoteOptions, RemoteStore};
use omnimap_testkit::{Asked, Misconduct, Validator, WebServer, pattern, within};

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than two stalls and what is waited between.
const READ_LIMIT: Duration = Duration::from_millis(2500);
const LENGTH: u64 = (3 << 20) + 17;

/// After these a request is made again.
const REPEATED: [Misconduct; 9] = [
    Misconduct::Reset,
    Misconduct::Truncated,
    Misconduct::Stalled,
    Misconduct::Silent,
    Misconduct::WrongLength,
    Misconduct::WrongRange,
    Misconduct::Status(500),
    Misconduct::Status(503),
    Misconduct::Status(429),
];

fn bytes(length: u64) -> Vec<u8> {
    (0..length).map(pattern).collect()
}

fn options() -> RemoteOptions {
    let mut options = RemoteOptions::new();
    options.stall_time_max(Duration::from_millis(500)).read_time_max(Duration::from_secs(5));
    options
}

fn open(server: &WebServer) -> RemoteStore {
    RemoteStore::open(&server.url(), &options()).unwrap()
}

fn read(store: &RemoteStore, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut into = vec![0; length];
    store.read_at(offset, &mut into).map(|got| {
        into.truncate(got);
        into
    })
}

/// Reads a place that has not come with the opening, while the server misbehaves.
fn read_in_spite_of(misconduct: Misconduct, times: u32) -> (Result<Vec<u8>>, Vec<Asked>, Duration) {
    within(LIMIT, move || {
        let server = WebServer::start(bytes(LENGTH));
        let mut options = options();
        options.read_time_max(READ_LIMIT);
        let store = RemoteStore::open(&server.url(), &options).unwrap();
        server.asked();
        server.misbehave(misconduct, times);
        let begin = Instant::now();
        let outcome = read(&store, 1 << 20, 100_000);
        (outcome, server.asked(), begin.elapsed())
    })
}

fn is_right(bytes: &[u8]) -> bool {
    bytes.len() == 100_000
        && bytes.iter().enumerate().all(|(at, byte)| *byte == pattern((1 << 20) + at as u64))
}

#[test]
fn a_web_server_is_a_store() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let store = open(&server);
        assert_eq!(store.name(), server.url());
        conformance::check_read(&store, pattern);
    });
}

#[test]
fn an_object_is_opened_by_one_request_and_its_head_needs_no_other() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let store = open(&server);
        assert_eq!(read(&store, 1000, 64_000).unwrap(), bytes(65_000)[1000..]);
        let asked = server.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!((asked[0].range.clone(), &asked[0].if_match), (Some(0..65536), &None));
        read(&store, LENGTH - 5, 5).unwrap();
        let asked = server.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!(
            (asked[0].range.clone(), asked[0].if_match.as_deref()),
            (Some(LENGTH - 5..LENGTH), Some("\"version-1\""))
        );
        assert_eq!(store.counts().requests, 2);
        assert_eq!(store.counts().bytes_fetched, 65536 + 5);
    });
}

#[test]
fn connections_that_break_and_servers_that_are_busy_are_asked_again() {
    for misconduct in REPEATED {
        let (outcome, asked, time) = read_in_spite_of(misconduct, 2);
        let got = outcome.unwrap_or_else(|error| panic!("{misconduct:?}: {error}, after {asked:?}"));
        assert!(is_right(&got), "{misconduct:?}");
        assert_eq!(asked.len(), 3, "{misconduct:?}: {asked:?}");
        assert!(time < READ_LIMIT, "{misconduct:?}: {time:?}");
    }
}

#[test]
fn no_misconduct_is_waited_for_longer_than_the_limit() {
    for misconduct in REPEATED {
        let (outcome, asked, time) = read_in_spite_of(misconduct, u32::MAX);
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, StoreError::Io { .. } | StoreError::Short { .. }),
            "{misconduct:?}: {error:?}"
        );
        assert!(asked.len() > 2, "{misconduct:?}: {asked:?}");
        assert!(time < READ_LIMIT + Duration::from_secs(2), "{misconduct:?}: {time:?}");
    }
}

#[test]
fn what_will_not_get_better_is_told_at_once() {
    for (status, kind) in
        [(403, std::io::ErrorKind::PermissionDenied), (401, std::io::ErrorKind::PermissionDenied)]
    {
        let (outcome, asked, _) = read_in_spite_of(Misconduct::Status(status), u32::MAX);
        let error = outcome.unwrap_err();
        assert!(
            matches!(&error, StoreError::Io { source, .. } if source.kind() == kind),
            "{status}: {error:?}"
        );
        assert_eq!(asked.len(), 1, "{status}: {asked:?}");
    }
}

#[test]
fn e4_an_object_that_was_replaced_is_an_error_whatever_names_its_version() {
    for validator in [Validator::Strong, Validator::Weak, Validator::Date] {
        for conditions in [true, false] {
            within(LIMIT, move || {
                let server = WebServer::start(bytes(LENGTH));
                server.set_validator(validator);
                server.set_conditions(conditions);
                let store = open(&server);
                assert_eq!(store.version().is_some(), validator == Validator::Strong);
                server.replace(Some(vec![1; LENGTH as usize]));
                let error = read(&store, 1 << 20, 10).unwrap_err();
                assert!(matches!(error, StoreError::Changed { .. }), "{validator:?}, {conditions}: {error}");
                server.replace(Some(vec![1; 10]));
                let error = read(&store, 1 << 20, 10).unwrap_err();
                assert!(matches!(error, StoreError::Changed { .. }), "shorter, {validator:?}: {error}");
                server.replace(None);
                let error = read(&store, 1 << 20, 10).unwrap_err();
                assert!(matches!(error, StoreError::Changed { .. }), "removed, {validator:?}: {error}");
            });
        }
    }
}

#[test]
fn what_cannot_be_mapped_says_what_to_do() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let refusal = |url: &str| RemoteStore::open(url, &options()).err().expect("refused").to_string();
        server.set_ranges(false);
        assert!(refusal(&server.url()).contains("no ranges of bytes"), "{}", refusal(&server.url()));
        server.set_ranges(true);
        server.set_validator(Validator::Nothing);
        assert!(refusal(&server.url()).contains("names no versions"), "{}", refusal(&server.url()));
        server.set_validator(Validator::Strong);
        server.misbehave(Misconduct::Status(403), 1);
        let told = refusal(&format!("{}?signature=secret", server.url()));
        assert!(told.contains("may need a signature") && !told.contains("secret"), "{told}");
        server.replace(None);
        assert!(refusal(&server.url()).contains("no such object"), "{}", refusal(&server.url()));
        let mut wrong = options();
        wrong.set("aws_region", "x");
        let told = RemoteStore::open(&server.url(), &wrong).err().unwrap().to_string();
        assert!(told.contains("no setting \"aws_region\""), "{told}");
        let url = server.url();
        drop(server);
        assert!(refusal(&url).contains("cannot open"), "{}", refusal(&url));
    });
}

#[test]
fn a_query_goes_with_every_request_and_is_not_shown() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let store = RemoteStore::open(&format!("{}?X-Signature=a%2Fb", server.url()), &options()).unwrap();
        read(&store, 1 << 20, 10).unwrap();
        let asked = server.asked();
        assert!(asked.iter().all(|a| a.target == "/object?X-Signature=a%2Fb"), "{asked:?}");
        assert!(!store.name().contains("Signature"), "{}", store.name());
        server.replace(None);
        let told = read(&store, 1 << 20, 10).unwrap_err().to_string();
        assert!(!told.contains("Signature"), "{told}");
    });
}

#[test]
fn an_empty_object_is_empty() {
    within(LIMIT, || {
        let server = WebServer::start(Vec::new());
        let store = open(&server);
        assert!(store.is_empty());
        assert!(read(&store, 0, 10).unwrap().is_empty());
        conformance::check_read(&store, pattern);
    });
}

#[test]
fn reads_that_are_made_together_are_merged_and_go_out_together() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let store = open(&server);
        server.asked();
        server.misbehave(Misconduct::Late(Duration::from_millis(300)), 20);
        // Twenty places that lie apart, each of two neighbours.
        let offsets: Vec<u64> = (0..40).map(|n| (1 << 20) + n / 2 * 100_000 + n % 2 * 4096).collect();
        let mut into = vec![[0; 4096]; 40];
        let mut reads: Vec<ReadAt<'_>> =
            offsets.iter().zip(&mut into).map(|(offset, into)| ReadAt { offset: *offset, into }).collect();
        let begin = Instant::now();
        let mut told = 0;
        store.read_each(&mut reads, &mut |_, outcome| {
            assert_eq!(outcome.unwrap(), 4096);
            told += 1;
        });
        let time = begin.elapsed();
        assert_eq!((told, server.asked().len()), (40, 20));
        assert!(time < Duration::from_millis(1500), "one after the other it would be 6 s: {time:?}");
        for (offset, into) in offsets.iter().zip(&into) {
            assert!(into.iter().zip(*offset..).all(|(byte, at)| *byte == pattern(at)));
        }
    });
}

#[test]
fn a_slow_answer_is_hedged_if_that_is_wanted() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let mut hedging = options();
        hedging.hedge_after(Duration::from_millis(50)).stall_time_max(Duration::from_secs(4));
        let store = RemoteStore::open(&server.url(), &hedging).unwrap();
        server.misbehave(Misconduct::Late(Duration::from_secs(3)), 1);
        let begin = Instant::now();
        assert_eq!(read(&store, 1 << 20, 10).unwrap().len(), 10);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    });
}

#[test]
fn no_thread_stays_when_the_last_store_is_gone() {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let name =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map(name).filter(|name| name.starts_with("omnimap-net")).count()
    };
    let name = "no_thread_stays_when_the_last_store_is_gone";
    // Other tests have stores of their own.
    match omnimap_testkit::in_child(name, LIMIT) {
        Some(output) => assert!(output.status.success(), "{output:?}"),
        None => {
            let server = WebServer::start(bytes(LENGTH));
            let stores = [open(&server), open(&server)];
            assert_eq!(threads(), 2);
            server.misbehave(Misconduct::Stalled, u32::MAX);
            let mut short = options();
            short.read_time_max(Duration::from_millis(300));
            let stalled = RemoteStore::open(&server.url(), &short);
            assert!(stalled.is_err());
            drop(stores);
            let begin = Instant::now();
            while threads() > 0 && begin.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(threads(), 0);
        }
    }
}

#[test]
fn a_store_goes_on_in_a_child_that_opens_it_anew() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let store = open(&server);
        let again = store.reopen().unwrap();
        assert_eq!((again.version(), again.len()), (store.version(), store.len()));
        server.replace(Some(vec![1; LENGTH as usize]));
        let mut into = [0; 10];
        assert!(
            matches!(again.read_at(1 << 20, &mut into), Err(StoreError::Changed { .. })),
            "the same version"
        );
    });
}

#[test]
fn many_threads_read_one_store() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let store = Arc::new(open(&server));
        std::thread::scope(|scope| {
            for thread in 0..16u64 {
                let store = store.clone();
                scope.spawn(move || {
                    for round in 0..20u64 {
                        let offset = (thread * 7919 + round * 104_729) % (LENGTH - 4096);
                        let got = read(&store, offset, 4096).unwrap();
                        assert!(got.iter().zip(offset..).all(|(byte, at)| *byte == pattern(at)));
                    }
                });
            }
        });
    });
}

#[test]
fn an_object_is_asked_for_as_its_url_is_written() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(100));
        let host = server.url().replace("/object", "");
        for path in ["/group%2Fproject/raw", "/directory/", "/a//b", "/a%20b?alt=media"] {
            RemoteStore::open(&format!("{host}{path}"), &options()).unwrap();
            assert_eq!(server.asked()[0].target, path);
        }
        let with_password = host.replace("http://", "http://me:pass%2Fword@");
        let store = RemoteStore::open(&format!("{with_password}/object"), &options()).unwrap();
        // me:pass/word
        assert_eq!(server.asked()[0].authorization.as_deref(), Some("Basic bWU6cGFzcy93b3Jk"));
        server.misbehave(Misconduct::Status(401), 1);
        let told =
            RemoteStore::open(&format!("{with_password}/object"), &options()).err().unwrap().to_string();
        assert!(!told.contains("Fword") && !store.name().contains("Fword"), "{told}");
    });
}

#[test]
fn without_a_head_an_object_is_opened_where_head_is_refused() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let mut headless = options();
        headless.head_bytes(0);
        for status in [403, 405] {
            // That is how a URL that was signed for GET alone answers.
            server.misbehave(Misconduct::Status(status), 1);
            let store = RemoteStore::open(&server.url(), &headless).unwrap();
            assert_eq!(store.len(), LENGTH, "{status}");
        }
        server.asked();
        RemoteStore::open(&server.url(), &headless).unwrap();
        let asked = server.asked();
        assert_eq!((asked.len(), asked[0].method.as_str()), (1, "HEAD"), "{asked:?}");
    });
}

#[test]
fn servers_that_give_the_whole_of_nothing_have_empty_objects() {
    within(LIMIT, || {
        let server = WebServer::start(Vec::new());
        server.set_ranges(false);
        assert!(open(&server).is_empty());
    });
}

#[test]
fn a_time_limit_may_be_none() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(LENGTH));
        let mut patient = options();
        patient.read_time_max(Duration::MAX);
        let store = RemoteStore::open(&server.url(), &patient).unwrap();
        assert_eq!(read(&store, 1 << 20, 10).unwrap().len(), 10);
    });
}

#[test]
fn objects_that_differ_in_their_query_alone_are_different_versions() {
    within(LIMIT, || {
        let server = WebServer::start(bytes(100));
        let version = |query: &str| {
            let store = RemoteStore::open(&format!("{}?{query}", server.url()), &options()).unwrap();
            store.version().unwrap()
        };
        assert_ne!(version("id=1"), version("id=2"));
        assert_eq!(version("id=1&X-Amz-Signature=a"), version("id=1&X-Amz-Signature=b"));
    });
}
