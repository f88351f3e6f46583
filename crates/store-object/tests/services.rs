//! What Google Cloud Storage and Azure are asked for, at a server that knows their conditions; and what is made of answers that
//! come late or are lost.

use std::path::Path;
use std::time::Duration;

use omnimap_store::{BackingStore, StoreError, conformance};
use omnimap_store_object::{RemoteOptions, RemoteStore, WorkingCopy};
use omnimap_testkit::{Misconduct, WebServer, pattern, within};

const LIMIT: Duration = Duration::from_secs(60);
const LENGTH: u64 = 300_000;
const URLS: [&str; 3] = ["s3://bucket/a/b c", "gs://bucket/a/b c", "az://bucket/a/b c"];
/// What goes before a request that is to be met by something.
const NOTHING: Misconduct = Misconduct::Late(Duration::ZERO);

fn bytes() -> Vec<u8> {
    (0..LENGTH).map(pattern).collect()
}

fn options(server: &WebServer, url: &str) -> RemoteOptions {
    let address = format!("http://{}", server.address());
    let mut options = RemoteOptions::new();
    options.set("skip_signature", "true").read_time_max(Duration::from_secs(10));
    match &url[..2] {
        "s3" => options.set("aws_endpoint", address),
        // A server without accounts, as those for tests are.
        "gs" => options.set("allow_http", "true").set(
            "google_service_account_key",
            format!(
                r#"{{"gcs_base_url": "{address}", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}}"#
            ),
        ),
        _ => options.set("azure_storage_account_name", "account").set("azure_endpoint", address),
    };
    options
}

/// With each service, or those that are named: its URL, the server, and where changes are.
fn with_each(urls: &'static [&'static str], work: fn(&str, &WebServer, &RemoteOptions, &Path)) {
    within(LIMIT, move || {
        for url in urls {
            let server = WebServer::start(bytes());
            let directory = tempfile::tempdir().unwrap();
            work(url, &server, &options(&server, url), directory.path());
        }
    });
}

#[test]
fn each_service_is_a_store() {
    with_each(&URLS, |url, server, options, _| {
        let store = RemoteStore::open(url, options).unwrap();
        conformance::check_read(&store, pattern);
        assert!(store.version().is_some(), "{url}");
        assert!(
            server
                .asked()
                .iter()
                .all(|asked| asked.target.contains("bucket/a") && asked.target.ends_with("b%20c")),
            "{url}"
        );
    });
}

#[test]
fn each_service_publishes_under_its_own_condition() {
    with_each(&URLS, |url, server, options, changes| {
        let copy = WorkingCopy::open(url, options, changes).unwrap();
        for round in 1..4 {
            copy.write_at(70_000, &[round; 10]).unwrap();
            server.asked();
            copy.sync().unwrap_or_else(|error| panic!("{url}: {error}"));
            let asked = server.asked();
            let put = asked.iter().find(|asked| asked.method == "PUT").unwrap();
            assert!(put.if_match.is_some() || put.if_generation.is_some(), "{url}: {put:?}");
            let object = server.object().unwrap();
            assert_eq!((object.len() as u64, &object[70_000..70_010]), (LENGTH, &[round; 10][..]), "{url}");
        }
        copy.write_at(0, b"mine").unwrap();
        // It comes between the question for the version and the upload: the condition alone finds it out.
        server.misbehave_at("PUT", Misconduct::Replaced, 1);
        let error = copy.sync().unwrap_err();
        assert!(matches!(error, StoreError::Changed { .. }), "{url}: {error}");
        assert_eq!(server.object().unwrap(), b"replaced", "{url}");
        assert!(WorkingCopy::kept(url, changes).unwrap().is_some(), "{url}");
    });
}

/// The version arrives, its answer is lost, and nobody can be asked whether it did.
fn sync_unanswered(server: &WebServer, copy: &WorkingCopy) {
    server.misbehave_at("PUT", Misconduct::Lost, 1);
    server.misbehave_at("HEAD", NOTHING, 1);
    server.misbehave_at("HEAD", Misconduct::Status(403), u32::MAX);
    copy.sync().unwrap_err();
    server.behave();
}

#[test]
fn an_answer_that_is_lost_is_no_conflict() {
    with_each(&URLS[1..], |url, server, options, changes| {
        let copy = WorkingCopy::open(url, options, changes).unwrap();
        copy.write_at(0, b"first").unwrap();
        server.misbehave_at("PUT", Misconduct::Lost, 1);
        copy.sync().unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(&server.object().unwrap()[..5], b"first", "{url}");
        // And now nobody can be asked whether it has arrived.
        copy.write_at(0, b"later").unwrap();
        sync_unanswered(server, &copy);
        copy.write_at(100, b"more").unwrap();
        copy.sync().unwrap_or_else(|error| panic!("in conflict with itself, {url}: {error}"));
        let object = server.object().unwrap();
        assert_eq!((&object[..5], &object[100..104]), (&b"later"[..], &b"more"[..]), "{url}");
        assert_eq!(WorkingCopy::kept(url, changes).unwrap(), None, "{url}");
        let mut into = [0; 10];
        copy.read_at(200_000, &mut into).unwrap();
        assert!(into.iter().zip(200_000..).all(|(byte, at)| *byte == pattern(at)), "{url}");
    });
}

#[test]
fn a_publication_whose_answer_was_lost_is_found_at_the_next_opening() {
    with_each(&URLS[1..], |url, server, options, changes| {
        let copy = WorkingCopy::open(url, options, changes).unwrap();
        copy.write_at(0, b"first").unwrap();
        sync_unanswered(server, &copy);
        drop(copy);
        server.asked();
        let copy = WorkingCopy::open(url, options, changes).unwrap_or_else(|error| panic!("{url}: {error}"));
        let asked = server.asked();
        assert!(asked.iter().all(|asked| asked.method != "PUT"), "{url}: it is there, and {asked:.300?}");
        let mut into = [0; 5];
        copy.read_at(0, &mut into).unwrap();
        assert_eq!(&into, b"first", "{url}");
    });
}

#[test]
fn reads_while_a_version_is_published_wait_for_it() {
    with_each(&URLS, |url, server, options, changes| {
        let copy = WorkingCopy::open(url, options, changes).unwrap();
        copy.write_at(0, b"first").unwrap();
        server.misbehave_at("PUT", Misconduct::Slow(Duration::from_millis(500)), 1);
        std::thread::scope(|scope| {
            let syncing = scope.spawn(|| copy.sync());
            while !server.object().is_some_and(|object| object.starts_with(b"first")) {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The version that was opened is not there any more, and the sync does not know yet.
            let mut into = [0; 10];
            copy.read_at(200_000, &mut into).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert!(into.iter().zip(200_000..).all(|(byte, at)| *byte == pattern(at)), "{url}");
            copy.write_at(100_001, b"in a block").unwrap_or_else(|error| panic!("{url}: {error}"));
            syncing.join().unwrap().unwrap_or_else(|error| panic!("{url}: {error}"));
        });
    });
}

#[test]
fn what_others_wrote_is_taken_when_that_is_wanted() {
    with_each(&URLS, |url, server, options, changes| {
        let copy = WorkingCopy::open(url, options, changes).unwrap();
        server.replace(Some(vec![7; 1000]));
        let mut into = [0; 10];
        assert!(copy.read_at(200_000, &mut into).is_err(), "{url}");
        copy.refresh().unwrap();
        assert_eq!((copy.len(), copy.read_at(500, &mut into).unwrap(), into), (1000, 10, [7; 10]), "{url}");
        copy.write_at(0, b"mine").unwrap();
        server.replace(Some(vec![8; 1000]));
        assert!(copy.refresh().is_err(), "{url}: what was stored is not given up");
    });
}
