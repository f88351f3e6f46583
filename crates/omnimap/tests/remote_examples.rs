//! The examples about objects beyond the machine do what they say, with few requests.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use omnimap_testkit::{WebServer, pattern, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(60);

/// Reads ahead that may be on their way when an example counts: asked for and not counted, or the reverse.
const UNDER_WAY_MAX: u64 = 2;

/// What an example prints about an object, without its last line; and how many requests and bytes the server saw.
fn shown(name: &'static str, object: Vec<u8>, arguments: &'static [&'static str]) -> (String, u64, u64) {
    let here = std::env::current_exe().unwrap();
    let example: PathBuf = here.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(example.exists(), "{}: cargo build -p omnimap --examples", example.display());
    within(LIMIT, move || {
        let server = WebServer::start(object);
        let output = Command::new(example).arg(server.url()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let (shown, counts) = text.trim_end().rsplit_once('\n').unwrap();
        let told: u64 = counts.split_whitespace().next().unwrap().parse().unwrap();
        let asked = server.asked();
        let seen = asked.len() as u64;
        assert!(told.abs_diff(seen) <= UNDER_WAY_MAX, "{counts}; the server saw {seen}");
        let bytes =
            asked.iter().filter_map(|asked| asked.range.clone()).map(|range| range.end - range.start).sum();
        (shown.to_owned(), seen, bytes)
    })
}

fn filler(length: u64) -> impl Iterator<Item = u8> {
    (0..length).map(pattern)
}

#[test]
fn of_a_parquet_file_the_footer_is_read() {
    if skip_without_mappings() {
        return;
    }
    let mut file = b"PAR1".to_vec();
    file.extend(filler(10 << 20));
    file.extend([0x15; 2000]);
    file.extend(2000u32.to_le_bytes());
    file.extend(b"PAR1");
    let (shown, requests, bytes) = shown("remote_parquet", file, &[]);
    assert!(shown.starts_with("a footer of 2000 bytes at 10485764, which begins [15, 15"), "{shown}");
    assert!(requests <= 3 && bytes < 100_000, "{requests} requests, {bytes} bytes");
}

#[test]
fn of_a_safetensors_file_the_header_and_one_tensor_are_read() {
    if skip_without_mappings() {
        return;
    }
    let tensor: Vec<u8> = (0..25_000).flat_map(|n: u16| f32::from(n).to_le_bytes()).collect();
    let header = r#"{"before":{"dtype":"F32","shape":[2000000],"data_offsets":[0,8000000]},
        "wanted":{"dtype":"F32","shape":[250,100],"data_offsets":[8000000,8100000]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(filler(8_000_000));
    file.extend(tensor);
    file.extend(filler(8_000_000));
    let (shown, requests, bytes) = shown("remote_safetensors", file, &["wanted"]);
    assert!(shown.ends_with("wanted adds up to 312487500"), "{shown}");
    assert!(requests <= 10 && bytes < 3_000_000, "{requests} requests, {bytes} bytes");
}

#[test]
fn of_an_npy_file_the_rows_are_read() {
    if skip_without_mappings() {
        return;
    }
    let header = format!("{:117}\n", "{'descr': '<f8', 'fortran_order': False, 'shape': (500000, 4), }");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend((0..2_000_000).flat_map(|n: i32| f64::from(n).to_le_bytes()));
    let (shown, requests, bytes) = shown("remote_npy", file, &["250000", "2"]);
    let rows = "250000: [1000000.0, 1000001.0, 1000002.0, 1000003.0]\n250001: [1000004.0, 1000005.0, 1000006.0, 1000007.0]";
    assert_eq!(shown, rows);
    assert!(requests <= 3 && bytes < 100_000, "{requests} requests, {bytes} bytes");
}

#[test]
fn of_an_fst_the_nodes_of_some_words_are_read() {
    if skip_without_mappings() {
        return;
    }
    let words: Vec<String> =
        (0..300_000).map(|n: u64| format!("{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    let mut sorted: Vec<(&String, u64)> = words.iter().zip(0..).collect();
    sorted.sort_unstable();
    let file = fst::Map::from_iter(sorted).unwrap().into_fst().into_inner();
    let all = file.len() as u64;
    let (shown, requests, bytes) =
        shown("remote_fst", file, &["0000000000000000", "9e3779b97f4a7c15", "no word"]);
    assert_eq!(shown, "0000000000000000: 0\n9e3779b97f4a7c15: 1\nno word: is not there");
    assert!(requests <= 60 && bytes < all / 4, "{requests} requests, {bytes} bytes of {all}");
}
