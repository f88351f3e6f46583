//! Packing into seekable zstd.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

use xxhash_rust::xxh64::xxh64;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::seek_table::{FRAMES_MAX, SeekTable};

/// How to pack.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// Bytes in a chunk, the least that can be unpacked at a time.
    pub chunk_bytes: NonZeroUsize,
    /// zstd's level: -7 to 22.
    pub level: i32,
    /// Threads that compress.
    pub threads: NonZeroUsize,
}

impl PackOptions {
    /// The longest chunk that [`pack`] makes: 16 MiB.
    pub const CHUNK_BYTES_MAX: usize = 16 << 20;
}

impl Default for PackOptions {
    /// 256 KiB, level 3, as many threads as the machine runs at once.
    fn default() -> Self {
        PackOptions {
            chunk_bytes: const { NonZeroUsize::new(256 << 10).unwrap() },
            level: 3,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// What packing made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes that were written.
    pub packed_bytes: u64,
    /// Frames.
    pub frames: usize,
}

/// Chunks that each thread has before it, so that none waits for another.
const CHUNKS_PER_THREAD: usize = 4;

/// More threads than this are not used.
const THREADS_MAX: usize = 256;

/// Packs all of `input` into `output`; `progress` is told the bytes read so far.
///
/// Each chunk becomes a frame with a checksum of its own; the table holds their checksums too. The memory used is
/// about eight chunks for each thread.
///
/// # Errors
/// Whatever reading or writing answers; InvalidInput for a chunk longer than [`PackOptions::CHUNK_BYTES_MAX`] or a level
/// that zstd does not have.
///
/// # Example
/// ```
/// use omnimap_store::{BackingStore, MemoryStore, PackOptions, ZstdStore, pack};
///
/// let text = "to be packed ".repeat(100_000);
/// let mut packed = Vec::new();
/// pack(text.as_bytes(), &mut packed, &PackOptions::default(), |_| {})?;
///
/// let store = ZstdStore::open(std::sync::Arc::new(MemoryStore::new("example", packed)))?;
/// let mut word = [0; 6];
/// store.read_at(1_300_000 - 7, &mut word)?;
/// assert_eq!(&word, b"packed");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pack(
    mut input: impl Read,
    mut output: impl Write,
    options: &PackOptions,
    mut progress: impl FnMut(u64),
) -> io::Result<Packed> {
    let chunk_bytes = options.chunk_bytes.get();
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    if chunk_bytes > PackOptions::CHUNK_BYTES_MAX {
        return Err(invalid(format!(
            "chunks of {chunk_bytes} bytes: at most {}",
            PackOptions::CHUNK_BYTES_MAX
        )));
    }
    let levels = zstd::compression_level_range();
    if !levels.contains(&options.level) {
        return Err(invalid(format!("level {}: zstd has {levels:?}", options.level)));
    }
    let threads = options.threads.get().min(THREADS_MAX);
    let mut table = SeekTable::default();
    let mut packed = Packed { bytes: 0, packed_bytes: 0, frames: 0 };
    let mut batch = vec![Vec::new(); threads * CHUNKS_PER_THREAD];
    loop {
        let mut count = 0;
        for chunk in &mut batch {
            read_chunk(&mut input, chunk, chunk_bytes)?;
            if chunk.is_empty() {
                break;
            }
            count += 1;
        }
        for (chunk, frame) in batch[..count].iter().zip(compress(&batch[..count], options.level, threads)?) {
            if packed.frames >= FRAMES_MAX as usize {
                return Err(invalid(format!("more than {FRAMES_MAX} chunks: use larger ones")));
            }
            output.write_all(&frame)?;
            let checksum = Some(xxh64(chunk, 0) as u32);
            table.push(frame.len() as u32, chunk.len() as u32, checksum).map_err(invalid)?;
            packed.bytes += chunk.len() as u64;
            packed.packed_bytes += frame.len() as u64;
            packed.frames += 1;
        }
        progress(packed.bytes);
        if count < batch.len() {
            break;
        }
    }
    if packed.frames == 0 {
        // An empty file, too, begins as a zstd file does.
        let frame = Compressor::new(options.level)?.compress(&[])?;
        output.write_all(&frame)?;
        table.push(frame.len() as u32, 0, Some(xxh64(&[], 0) as u32)).map_err(invalid)?;
        packed.packed_bytes += frame.len() as u64;
        packed.frames = 1;
    }
    let table = table.encode();
    output.write_all(&table)?;
    output.flush()?;
    packed.packed_bytes += table.len() as u64;
    Ok(packed)
}

fn read_chunk(input: &mut impl Read, chunk: &mut Vec<u8>, chunk_bytes: usize) -> io::Result<()> {
    chunk.clear();
    input.by_ref().take(chunk_bytes as u64).read_to_end(chunk)?;
    Ok(())
}

/// A frame of each chunk, in order, by several threads.
fn compress(chunks: &[Vec<u8>], level: i32, threads: usize) -> io::Result<Vec<Vec<u8>>> {
    let share = chunks.len().div_ceil(threads).max(1);
    let compress_share = |chunks: &[Vec<u8>]| -> io::Result<Vec<Vec<u8>>> {
        let mut compressor = Compressor::new(level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        chunks.iter().map(|chunk| compressor.compress(chunk)).collect()
    };
    std::thread::scope(|scope| {
        let compress_share = &compress_share;
        let threads: Vec<_> = chunks
            .chunks(share)
            .map(|chunks| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || compress_share(chunks));
                (chunks, thread)
            })
            .collect();
        let mut frames = Vec::with_capacity(chunks.len());
        for (chunks, thread) in threads {
            frames.extend(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                // Where there may be no more threads, this one does it.
                Err(_) => compress_share(chunks)?,
            });
        }
        Ok(frames)
    })
}
