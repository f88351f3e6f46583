//! What `cargo xtask bench remote` shows: an object behind a link of 30 ms and 100 MB/s.

#![expect(clippy::print_stdout, reason = "figures are for people")]

use std::ops::Range;
use std::time::{Duration, Instant};

use omnimap::store::{BackingStore, DiskTier};
use omnimap::{Advice, MapOptions, Mapping, RemoteStore};
use omnimap_testkit::{Prng, SlowLink, within};
use sha2::{Digest, Sha256};

use crate::server::{S3, options, url};

const LENGTH: u64 = 1 << 30;
const BUDGET: u64 = 64 << 20;
const RUNS: usize = 5;

/// Bytes that cannot be guessed from their offsets.
fn random_bytes() -> Vec<u8> {
    let mut random = Prng::new(1);
    (0..LENGTH / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// Downloads all by so many threads, a piece each at a time, as `aws s3 cp` does.
fn download(link: &SlowLink, threads: u64, piece: u64) -> Duration {
    let store = RemoteStore::open(&url("object"), &options(link.address())).unwrap();
    let next = std::sync::atomic::AtomicU64::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut into = vec![0; piece as usize];
                loop {
                    let offset = next.fetch_add(piece, std::sync::atomic::Ordering::Relaxed);
                    if offset >= LENGTH {
                        return;
                    }
                    store.read_at(offset, &mut into).unwrap();
                }
            });
        }
    });
    begin.elapsed()
}

#[test]
#[ignore = "a benchmark: cargo xtask bench remote"]
fn figures() {
    within(Duration::from_secs(1500), || {
        let s3 = S3::start();
        let bytes = random_bytes();
        let expected = Sha256::digest(&bytes);
        s3.put("object", &bytes);
        drop(bytes);
        let link = s3.far();
        let mut map = MapOptions::new();
        map.remote(options(link.address())).budget(BUDGET);
        sequential(&link, &map, expected.as_slice());
        by_many_threads(&link, &map);
        in_one_wave(&link, &map);
        bytes_fetched(&link, &map);
        second_run(&link, &map);
    });
}

/// Of what a downloader has under way: what the mapping may have.
const CONNECTIONS: u64 = 8;
const PIECE: u64 = 2 << 20;

fn sequential(link: &SlowLink, map: &MapOptions, expected: &[u8]) {
    let (mut mapped, mut hashed, mut downloaded, mut requests) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for run in 0..RUNS {
        downloaded.push(download(link, CONNECTIONS, PIECE));
        link.counts();
        let mapping = map.open(url("object")).unwrap();
        let begin = Instant::now();
        let sum = mapping.chunks(4096).fold(0u8, |sum, page| sum.wrapping_add(page[0]));
        mapped.push(begin.elapsed());
        std::hint::black_box(sum);
        requests = link.counts().0;
        drop(mapping);
        if run == 0 {
            let mapping = map.open(url("object")).unwrap();
            let begin = Instant::now();
            assert_eq!(Sha256::digest(&*mapping).as_slice(), expected, "the bytes are those of the source");
            hashed.push(begin.elapsed());
            link.counts();
        }
    }
    let megabytes = |seconds: f64| LENGTH as f64 / 1e6 / seconds;
    let (mapped, downloaded) = (median(mapped), median(downloaded));
    println!("SHA-256 of 1 GiB under 64 MiB: right, {:.1} MB/s", megabytes(median(hashed)));
    println!(
        "sequential: mapping {:.1} MB/s, downloader with {CONNECTIONS} connections {:.1} MB/s, ratio {:.2}",
        megabytes(mapped),
        megabytes(downloaded),
        downloaded / mapped
    );
    println!("requests for 1 GiB: {requests} (1024 asked)");
}

/// Places of 4 KiB that lie apart.
fn places(seed: u64) -> Vec<Range<u64>> {
    let mut random = Prng::new(seed);
    (0..1000).map(|_| random.below(LENGTH / 4096) * 4096).map(|at| at..at + 4096).collect()
}

fn touch(mapping: &Mapping, range: &Range<u64>) {
    std::hint::black_box(mapping[range.start as usize]);
}

fn by_many_threads(link: &SlowLink, map: &MapOptions) {
    let times = (0..RUNS).map(|run| {
        let mapping = map.open(url("object")).unwrap();
        let places = places(10 + run as u64);
        link.counts();
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for part in places.chunks(places.len().div_ceil(64)) {
                let mapping = &mapping;
                scope.spawn(move || {
                    part.iter().for_each(|range| touch(mapping, range));
                });
            }
        });
        begin.elapsed()
    });
    let (time, ideal) = (median(times.collect()), 1000.0 * 0.030 / 64.0);
    println!(
        "1,000 random reads by 64 threads: {time:.3} s, {:.2} of the ideal {ideal:.3} s (2.5 asked)",
        time / ideal
    );
}

fn in_one_wave(link: &SlowLink, map: &MapOptions) {
    let times = (0..RUNS).map(|run| {
        let mapping = map.open(url("object")).unwrap();
        let places = places(20 + run as u64);
        link.counts();
        let begin = Instant::now();
        mapping.prefetch_many(&places).unwrap().wait().unwrap();
        places.iter().for_each(|range| touch(&mapping, range));
        begin.elapsed()
    });
    let (time, ideal) = (median(times.collect()), 1000.0 * 0.030 / 64.0);
    println!("the same, prefetched in one wave: {time:.3} s, {:.2} of the ideal (1.3 asked)", time / ideal);
}

fn bytes_fetched(link: &SlowLink, map: &MapOptions) {
    for (advice, asked) in [(Advice::Normal, 20), (Advice::Random, 4)] {
        let mapping = map.clone().advice(advice).open(url("object")).unwrap();
        link.counts();
        let places = places(30);
        std::thread::scope(|scope| {
            for part in places.chunks(places.len().div_ceil(16)) {
                let mapping = &mapping;
                scope.spawn(move || {
                    part.iter().for_each(|range| touch(mapping, range));
                });
            }
        });
        let (_, fetched) = link.counts();
        let share = fetched as f64 / (1000.0 * 4096.0);
        println!("bytes fetched for each byte used, {advice:?}: {share:.2} ({asked} asked)");
    }
}

fn second_run(link: &SlowLink, map: &MapOptions) {
    let directory = tempfile::tempdir().unwrap();
    for run in ["first", "second"] {
        let tier = DiskTier::open(directory.path(), 2 << 30).unwrap();
        let mut map = map.clone();
        let mapping = map.disk_tier(&tier).length(256 << 20).open(url("object")).unwrap();
        link.counts();
        let begin = Instant::now();
        let sum = mapping.chunks(4096).fold(0u8, |sum, page| sum.wrapping_add(page[0]));
        std::hint::black_box(sum);
        let (requests, bytes) = link.counts();
        println!(
            "disk tier, {run} run of 256 MiB: {requests} requests, {bytes} bytes, {:?}",
            begin.elapsed()
        );
    }
}
