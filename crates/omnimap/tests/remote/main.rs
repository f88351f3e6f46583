//! Objects of a bucket as memory, with a real S3 server behind the link.

mod figures;
mod moto;
mod server;
mod uploads;
mod writing;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use omnimap::store::{BackingStore, DiskTier, PackOptions, pack};
use omnimap::{Advice, MapOptions, Mapping, RemoteStore};
use omnimap_testkit::{Prng, SlowLink, pattern, skip_without_mappings, within};
use server::{S3, options, url};
use sha2::{Digest, Sha256};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;
const VICTIM: &str = "OMNIMAP_REMOTE_VICTIM";

fn bytes(length: u64) -> Vec<u8> {
    (0..length).map(pattern).collect()
}

/// Runs a test once more, in a process to be killed, with an S3 server and a directory.
fn start_victim(name: &str, server: SocketAddr, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(VICTIM, format!("{server} {}", directory.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// In that process: the server, and the directory.
fn told_victim() -> Option<(SocketAddr, PathBuf)> {
    let told = std::env::var(VICTIM).ok()?;
    let (server, directory) = told.split_once(' ').unwrap();
    Some((server.parse().unwrap(), directory.into()))
}

/// Reads from an S3 server behind a link that delays and limits, or skips.
fn with_far_object(length: u64, work: impl FnOnce(&SlowLink, MapOptions) + Send + 'static) {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, move || {
        let s3 = S3::start();
        s3.put("object", &bytes(length));
        let link = s3.far();
        let mut map = MapOptions::new();
        map.remote(options(link.address()));
        work(&link, map);
    });
}

#[test]
fn an_object_of_a_bucket_is_a_slice_under_a_budget() {
    with_far_object(40 * MIB + 17, |_, mut map| {
        let mapping = map.budget(8 * MIB).open(url("object")).unwrap();
        let expected = Sha256::digest(bytes(40 * MIB + 17));
        assert_eq!(Sha256::digest(&*mapping), expected);
        assert!(mapping.stats().pages_resident * 4096 <= 8 * MIB);
    });
}

#[test]
fn it_is_read_with_few_requests() {
    with_far_object(64 * MIB, |link, mut map| {
        let mapping = map.budget(32 * MIB).open(url("object")).unwrap();
        link.counts();
        assert_eq!(Sha256::digest(&*mapping), Sha256::digest(bytes(64 * MIB)));
        let (requests, fetched) = link.counts();
        assert!(requests <= 64, "{requests} requests for 64 MiB");
        assert!(fetched < 70 * MIB, "{fetched} bytes");
    });
}

#[test]
fn random_reads_fetch_little() {
    with_far_object(256 * MIB, |link, map| {
        for (advice, share_max) in [(Advice::Normal, 20), (Advice::Random, 4)] {
            let mapping = map.clone().advice(advice).open(url("object")).unwrap();
            link.counts();
            let mut random = Prng::new(5);
            let used: u64 = (0..200)
                .map(|_| {
                    let at = random.below(256 * MIB / 4096) * 4096;
                    assert_eq!(mapping[at as usize], pattern(at));
                    4096
                })
                .sum();
            let (_, fetched) = link.counts();
            assert!(fetched <= used * share_max, "{advice:?}: {fetched} bytes for {used}");
        }
    });
}

#[test]
fn scattered_pages_are_prefetched_in_one_wave() {
    with_far_object(256 * MIB, |link, map| {
        let mapping = map.clone().budget(64 * MIB).open(url("object")).unwrap();
        link.counts();
        let mut random = Prng::new(6);
        let ranges: Vec<_> = (0..500).map(|_| random.below(65_535) * 4096).map(|at| at..at + 4096).collect();
        mapping.prefetch_many(&ranges).unwrap().wait().unwrap();
        let (requests, _) = link.counts();
        let begin = std::time::Instant::now();
        for range in &ranges {
            assert_eq!(mapping[range.start as usize], pattern(range.start));
        }
        assert!(begin.elapsed() < Duration::from_millis(300), "all of them are there");
        assert!(requests <= 500, "{requests}");
        assert_eq!(link.counts().0, 0);
    });
}

#[test]
fn e4_a_replaced_object_is_an_error_and_what_was_read_stays() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let s3 = S3::start();
        s3.put("object", &bytes(8 * MIB));
        let mapping = MapOptions::new().remote(s3.options()).open(url("object")).unwrap();
        assert_eq!(mapping[5], pattern(5));
        s3.put("object", &vec![1; 8 * MIB as usize]);
        let mut into = [0; 10];
        let error = mapping.read_at(4 * MIB, &mut into).unwrap_err();
        assert!(error.to_string().contains("changed since it was opened"), "{error}");
        assert_eq!(mapping[6], pattern(6), "no mixture, but what is in memory is of the version");
        let anew = MapOptions::new().remote(s3.options()).open(url("object")).unwrap();
        assert_eq!(anew[4 << 20], 1);
    });
}

#[test]
fn a_packed_object_is_unpacked_whether_the_url_says_so_or_not() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let s3 = S3::start();
        let plain = bytes(4 * MIB);
        let mut packed = Vec::new();
        pack(&plain[..], &mut packed, &PackOptions::default(), |_| ()).unwrap();
        s3.put("packed", &packed);
        let open = |url: String| -> Mapping { MapOptions::new().remote(s3.options()).open(url).unwrap() };
        assert!(open(url("packed"))[..] == plain);
        assert!(open(format!("zstd+{}", url("packed")))[..] == plain);
        assert!(open(format!("plain+{}", url("packed")))[..] == packed);
    });
}

#[test]
fn a_second_run_fetches_no_byte_of_what_the_tier_has() {
    with_far_object(16 * MIB, |link, mut map| {
        let directory = tempfile::tempdir().unwrap();
        for run in 0..2 {
            let tier = DiskTier::open(directory.path(), 64 * MIB).unwrap();
            let mapping = map.disk_tier(&tier).open(url("object")).unwrap();
            assert_eq!(Sha256::digest(&*mapping), Sha256::digest(bytes(16 * MIB)));
            let (requests, fetched) = link.counts();
            // What comes is the head of an answer without a body.
            assert!(run == 0 || (requests == 1 && fetched < 1000), "{requests} requests, {fetched} bytes");
        }
    });
}

#[test]
fn private_mappings_of_an_object_keep_what_is_stored_to_themselves() {
    with_far_object(4 * MIB, |_, mut map| {
        let mut mapping = map.budget(2 * MIB).open_private(url("object")).unwrap();
        mapping.fill(7);
        assert!(mapping.iter().all(|byte| *byte == 7));
        assert_eq!(map.open(url("object")).unwrap()[100], pattern(100));
    });
}

#[test]
fn an_object_that_cannot_be_opened_says_why() {
    within(LIMIT, || {
        let s3 = S3::start();
        let refusal = |map: &mut MapOptions, url: &str| map.open(url).expect_err("refused").to_string();
        let mut map = MapOptions::new();
        map.remote(s3.options());
        assert!(refusal(&mut map, &url("nothing")).contains("no such object"));
        assert!(refusal(&mut map, "s3://bucket").contains("names a bucket"));
        let mut wrong = s3.options();
        wrong.set("aws_secret_access_key", "another");
        map.remote(wrong);
        s3.put("object", b"bytes");
        let told = refusal(&mut map, &url("object"));
        assert!(told.contains("AWS_ACCESS_KEY_ID") && !told.contains("another"), "{told}");
    });
}

#[test]
fn stores_of_one_object_conform() {
    within(LIMIT, || {
        let s3 = S3::start();
        s3.put("object", &bytes(3 * MIB + 5));
        let store: Arc<dyn BackingStore> =
            Arc::new(RemoteStore::open(&url("object"), &s3.options()).unwrap());
        assert!(store.version().is_some());
        omnimap::store::conformance::check_read(&*store, pattern);
    });
}
