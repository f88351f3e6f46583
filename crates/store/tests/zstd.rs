//! Seekable zstd made by others, and what is wrong with files that cannot be mapped.

use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::Arc;

use omnimap_store::conformance::check_read;
use omnimap_store::{BackingStore, MemoryStore, PackOptions, StoreError, ZstdStore, pack};
use proptest::prelude::*;

fn byte(at: u64) -> u8 {
    (at / 100) as u8 ^ (at as u8 & 3)
}

fn bytes(length: u64) -> Vec<u8> {
    (0..length).map(byte).collect()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let options = PackOptions { chunk_bytes: NonZeroUsize::new(10_000).unwrap(), ..Default::default() };
    pack(bytes, &mut packed, &options, |_| {}).unwrap();
    packed
}

fn open(packed: Vec<u8>) -> Result<ZstdStore, StoreError> {
    ZstdStore::open(Arc::new(MemoryStore::new("a/file.zst", packed)))
}

fn refusal(packed: Vec<u8>) -> String {
    match open(packed) {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error.to_string(),
    }
}

/// The zstd library's decoder, as the plain program has it.
#[test]
fn what_we_pack_any_zstd_unpacks() {
    for length in [0, 1, 10_000, 123_456] {
        let packed = packed(&bytes(length));
        assert_eq!(zstd::decode_all(&packed[..]).unwrap(), bytes(length));
        let mut unpacked = Vec::new();
        let decoder = zeekstd::Decoder::new(std::io::Cursor::new(packed)).unwrap();
        zeekstd_read(decoder, &mut unpacked);
        assert_eq!(unpacked, bytes(length));
    }
}

fn zeekstd_read(mut decoder: zeekstd::Decoder<'_, std::io::Cursor<Vec<u8>>>, into: &mut Vec<u8>) {
    decoder.read_to_end(into).unwrap();
}

#[test]
fn what_the_zstd_program_makes_of_it_is_the_original() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("packed.zst");
    std::fs::write(&path, packed(&bytes(123_456))).unwrap();
    match Command::new("zstd").arg("-dcq").arg(&path).stderr(Stdio::inherit()).output() {
        Ok(output) => assert!(output.status.success() && output.stdout == bytes(123_456)),
        // Past the test runner's capture, which would hide it.
        Err(error) => writeln!(std::io::stderr(), "SKIPPED: the zstd program is not here ({error})").unwrap(),
    }
}

/// No checksums in the table, frames by size, made by another implementation.
#[test]
fn files_packed_by_others_are_mapped() {
    for frame in [1000, 65536] {
        let mut packed = Vec::new();
        let mut encoder = zeekstd::EncodeOptions::new()
            .frame_size_policy(zeekstd::FrameSizePolicy::Uncompressed(frame))
            .into_encoder(&mut packed)
            .unwrap();
        std::io::Write::write_all(&mut encoder, &bytes(200_001)).unwrap();
        encoder.finish().unwrap();
        let store = open(packed).unwrap();
        assert_eq!(store.len(), 200_001);
        check_read(&store, byte);
    }
}

#[test]
fn an_ordinary_zstd_file_is_refused_with_what_to_do() {
    let error = refusal(zstd::encode_all(&bytes(100_000)[..], 3).unwrap());
    assert!(
        error.contains("a/file.zst") && error.contains("omnimap pack") && error.contains("seek table"),
        "{error}"
    );
}

#[test]
fn what_is_no_zstd_is_refused() {
    assert!(refusal(b"plain text".to_vec()).contains("not a zstd file"));
    assert!(refusal(Vec::new()).contains("not a zstd file"));
    assert!(refusal(vec![0x28, 0xB5, 0x2F, 0xFD]).contains("seek table"));
}

#[test]
fn a_damaged_seek_table_is_refused_and_the_error_says_how_it_is_damaged() {
    let good = packed(&bytes(100_000));
    let end = good.len();
    let damage = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        refusal(bad)
    };
    // Count of frames, descriptor, an entry's size, the skippable frame's magic.
    for error in [
        damage(end - 9, 200),
        damage(end - 5, 0xFC),
        damage(end - 30, 0x77),
        damage(end - 9 - 12 * 10 - 8, 0),
    ] {
        assert!(error.contains("seek table is damaged") && error.contains("omnimap pack"), "{error}");
    }
    let mut huge = good.clone();
    huge[end - 9..end - 5].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(refusal(huge).contains("4294967295 frames"));
    // Frames that together are longer than the file.
    let mut truncated = good[20..].to_vec();
    truncated[..4].copy_from_slice(&good[..4]);
    assert!(refusal(truncated).contains("describes a file"));
}

#[test]
fn a_truncated_or_damaged_frame_is_an_error_where_it_is_and_nowhere_else() {
    let mut bad = packed(&bytes(100_000));
    let store = open(bad.clone()).unwrap();
    assert_eq!(store.chunk_at(35_000), 30_000..40_000);
    // Somewhere in the middle of the fourth frame.
    let frame = bad.windows(4).enumerate().filter(|(_, w)| *w == [0x28, 0xB5, 0x2F, 0xFD]).nth(3).unwrap().0;
    bad[frame + 20] ^= 0xFF;
    let store = open(bad).unwrap();
    let mut into = vec![0; 10];
    store.read_at(29_990, &mut into).unwrap();
    store.read_at(40_000, &mut into).unwrap();
    let error = store.read_at(35_000, &mut into).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("frame 3"), "{error}");
    assert!(store.read_at(25_000, &mut vec![0; 20_000]).is_err(), "a read over it");
}

#[test]
fn a_checksum_in_the_table_that_does_not_match_is_an_error() {
    let mut bad = packed(&bytes(100_000));
    let entry = bad.len() - 9 - 12 * 10 + 8;
    bad[entry] ^= 1;
    let store = open(bad).unwrap();
    let error = store.read_at(0, &mut [0; 10]).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn packing_refuses_what_zstd_does_not_have() {
    let refused = |options| pack(&b""[..], Vec::new(), &options, |_| {}).unwrap_err().to_string();
    assert!(refused(PackOptions { level: 99, ..Default::default() }).contains("level 99"));
    let chunk_bytes = NonZeroUsize::new(1 << 30).unwrap();
    assert!(refused(PackOptions { chunk_bytes, ..Default::default() }).contains("at most"));
}

proptest! {
    /// Any bytes: an error or an object, and no panic.
    #[test]
    fn no_input_panics(mut tail in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200, value: u8) {
        let mut file = packed(&bytes(5_000));
        let changed = at % file.len();
        file[changed] = value;
        if let Ok(store) = open(file) {
            let _ = store.read_at(0, &mut vec![0; 5_000]);
        }
        let mut other = vec![0x28, 0xB5, 0x2F, 0xFD];
        other.append(&mut tail);
        other.extend(3u32.to_le_bytes());
        other.push(0x80);
        other.extend(0x8F92_EAB1u32.to_le_bytes());
        let _ = open(other);
    }
}
