//! A store that unpacks seekable zstd.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh64::xxh64;
use zstd::bulk::Decompressor;

use super::seek_table::{FOOTER_BYTES, Footer, SeekTable};
use crate::{Answers, BackingStore, Result, StoreError, Transfer, Version};

/// A frame longer than this cannot be mapped: one byte of it costs as much memory beside the budget.
const FRAME_BYTES_MAX: u64 = 64 << 20;
/// Unpacked frames kept for the next read, which often wants the rest of the same one.
const KEPT_BYTES_MAX: usize = 4 << 20;
/// What each of them costs beside its bytes, so that many small ones are not kept for nothing.
const KEPT_OVERHEAD_BYTES: usize = 256;
/// Packed bytes of neighbouring frames that are read in one request.
const PACKED_READ_BYTES_MAX: u64 = 1 << 20;
/// Idle decoders kept, each with its tables and a buffer.
const DECODERS_MAX: usize = 16;

/// The bytes packed in a seekable zstd file, as an object. Read-only.
///
/// A chunk is a frame. Every frame is checked: against the checksum that it carries, and the one in the table.
/// A frame of which only a part was wanted is kept for a while (4 MiB in all), outside any budget.
pub struct ZstdStore {
    packed: Arc<dyn BackingStore>,
    table: SeekTable,
    decoders: Mutex<Vec<Decoder>>,
    kept: Mutex<VecDeque<Arc<Unpacked>>>,
    gate: Gate,
}

/// A frame that is being unpacked, and is there when the lock is free.
type OnItsWay = Option<Arc<Unpacked>>;

/// Whoever unpacks a frame for its parts: others that want parts of the same one wait for it.
#[derive(Default)]
struct Gate {
    under_way: Mutex<HashMap<usize, Arc<Mutex<OnItsWay>>>>,
}

struct Decoder {
    context: Decompressor<'static>,
    packed: Vec<u8>,
}

struct Unpacked {
    frame: usize,
    bytes: Vec<u8>,
}

impl ZstdStore {
    /// Whether the bytes begin as a zstd file does.
    pub fn is_zstd(packed: &dyn BackingStore) -> Result<bool> {
        let mut magic = [0; 4];
        let got = packed.read_at(0, &mut magic)?;
        let magic = u32::from_le_bytes(magic);
        // RFC 8878, 3.1.1 and 3.1.2.
        Ok(got == 4 && (magic == 0xFD2F_B528 || magic & 0xFFFF_FFF0 == 0x184D_2A50))
    }

    /// Reads the table of `packed`.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if it is no seekable zstd, or its table is damaged.
    pub fn open(packed: Arc<dyn BackingStore>) -> Result<ZstdStore> {
        let unusable = |reason: String| StoreError::Unusable { name: packed.name().to_owned(), reason };
        if !Self::is_zstd(&*packed)? {
            return Err(unusable("not a zstd file; --format plain maps its bytes as they are".to_owned()));
        }
        let table = read_table(&*packed)?.map_err(unusable)?;
        if table.longest() > FRAME_BYTES_MAX {
            return Err(unusable(format!(
                "a frame of {} bytes: at most {FRAME_BYTES_MAX} can be mapped. Pack it anew with smaller chunks: \
                 zstd -dc FILE | omnimap pack - NEW",
                table.longest()
            )));
        }
        Ok(ZstdStore {
            packed,
            table,
            decoders: Mutex::default(),
            kept: Mutex::default(),
            gate: Gate::default(),
        })
    }

    /// Bytes of the packed file.
    pub fn packed_bytes(&self) -> u64 {
        self.packed.len()
    }

    /// The number of frames.
    pub fn frame_count(&self) -> usize {
        self.table.frame_count()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Unpacked>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, unpacked: Arc<Unpacked>) {
        let mut kept = self.kept();
        kept.push_back(unpacked);
        let cost = |u: &Arc<Unpacked>| u.bytes.len() + KEPT_OVERHEAD_BYTES;
        let mut bytes: usize = kept.iter().map(cost).sum();
        while bytes > KEPT_BYTES_MAX && kept.len() > 1 {
            bytes -= kept.pop_front().as_ref().map_or(0, cost);
        }
    }

    fn with_decoder<T>(&self, work: impl FnOnce(&mut Decoder) -> Result<T>) -> Result<T> {
        let idle = || self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut decoder = match taken {
            Some(decoder) => decoder,
            None => Decoder {
                context: Decompressor::new().map_err(|source| StoreError::Io {
                    action: "making a zstd context",
                    length: 0,
                    source,
                })?,
                packed: Vec::new(),
            },
        };
        let outcome = work(&mut decoder);
        if decoder.packed.capacity() > 2 * PACKED_READ_BYTES_MAX as usize {
            decoder.packed = Vec::new();
        }
        let mut idle = idle();
        if idle.len() < DECODERS_MAX {
            idle.push(decoder);
        }
        outcome
    }

    /// Unpacks `packed`, which is all of a frame, into `into`, which has its length.
    fn unpack(
        &self,
        context: &mut Decompressor<'_>,
        frame: usize,
        packed: &[u8],
        into: &mut [u8],
    ) -> Result<()> {
        let damaged = |what: String| StoreError::Corrupt {
            what: format!(
                "frame {frame}, bytes {:?} of the packed file: {what}",
                self.table.packed_range(frame)
            ),
        };
        let got = context.decompress_to_buffer(packed, into).map_err(|e| damaged(e.to_string()))?;
        if got != into.len() {
            return Err(damaged(format!("it unpacks to {got} bytes, and the table says {}", into.len())));
        }
        match self.table.checksum(frame) {
            Some(expected) if xxh64(into, 0) as u32 != expected => {
                Err(damaged("its checksum is not the one in the table".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Reads whole frames straight to where they belong. `into` is exactly their bytes.
    fn read_whole(&self, frames: Range<usize>, into: &mut [u8]) -> Result<()> {
        self.with_decoder(|decoder| {
            let mut rest = into;
            let mut next = frames.start;
            while next < frames.end {
                let from = self.table.packed_range(next).start;
                let mut last = next;
                while last + 1 < frames.end
                    && self.table.packed_range(last + 1).end - from <= PACKED_READ_BYTES_MAX
                {
                    last += 1;
                }
                let packed_bytes = (self.table.packed_range(last).end - from) as usize;
                decoder.packed.resize(packed_bytes, 0);
                read_exactly(&*self.packed, from, &mut decoder.packed)?;
                for frame in next..=last {
                    let (packed, bytes) = (self.table.packed_range(frame), self.table.range(frame));
                    let packed =
                        &decoder.packed[(packed.start - from) as usize..(packed.end - from) as usize];
                    let (into, after) = rest.split_at_mut((bytes.end - bytes.start) as usize);
                    self.unpack(&mut decoder.context, frame, packed, into)?;
                    rest = after;
                }
                next = last + 1;
            }
            Ok(())
        })
    }

    /// A frame of which a part is wanted: from among those kept, or unpacked, by one thread for all, and kept.
    fn read_kept(&self, frame: usize) -> Result<Arc<Unpacked>> {
        let find = || self.kept().iter().find(|u| u.frame == frame).cloned();
        if let Some(found) = find() {
            return Ok(found);
        }
        let under_way = || self.gate.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = under_way().entry(frame).or_default().clone();
        let mut unpacked = entry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = unpacked.clone().or_else(find) {
            return Ok(found);
        }
        let range = self.table.range(frame);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let outcome = self.read_whole(frame..frame + 1, &mut bytes);
        // Those who wait take it from here; who comes later, from among those kept, or begins anew.
        under_way().remove(&frame);
        outcome?;
        let done = Arc::new(Unpacked { frame, bytes });
        *unpacked = Some(done.clone());
        self.keep(done.clone());
        Ok(done)
    }
}

impl BackingStore for ZstdStore {
    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        Ok(Arc::new(ZstdStore::open(self.packed.reopen()?)?))
    }

    fn name(&self) -> &str {
        self.packed.name()
    }

    fn len(&self) -> u64 {
        self.table.len()
    }

    fn transfer(&self) -> Transfer {
        // Several reads together are made one after the other here.
        let packed = self.packed.transfer().reading_together(NonZeroUsize::MIN);
        match packed.answers {
            // Unpacking takes its time, wherever the packed bytes are.
            Answers::AtOnce => packed.answering(Answers::Promptly),
            _ => packed,
        }
    }

    fn chunk_at(&self, offset: u64) -> Range<u64> {
        if offset >= self.len() {
            return offset..offset + 1;
        }
        self.table.range(self.table.frame_at(offset))
    }

    fn version(&self) -> Option<Version> {
        self.packed.version()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let end = self.len().min(offset.saturating_add(into.len() as u64));
        let mut at = offset;
        while at < end {
            let frame = self.table.frame_at(at);
            let range = self.table.range(frame);
            let rest = &mut into[(at - offset) as usize..(end - offset) as usize];
            if at == range.start && range.end <= end {
                let mut last = frame;
                while last + 1 < self.frame_count() && self.table.range(last + 1).end <= end {
                    last += 1;
                }
                let stop = self.table.range(last).end;
                self.read_whole(frame..last + 1, &mut rest[..(stop - at) as usize])?;
                at = stop;
            } else {
                let unpacked = self.read_kept(frame)?;
                let stop = range.end.min(end);
                let part = (at - range.start) as usize..(stop - range.start) as usize;
                rest[..part.len()].copy_from_slice(&unpacked.bytes[part]);
                at = stop;
            }
        }
        Ok(at.saturating_sub(offset) as usize)
    }
}

/// The table of a file, or what is wrong with it.
fn read_table(packed: &dyn BackingStore) -> Result<Result<SeekTable, String>> {
    let no_table = || {
        "an ordinary zstd file, without a seek table (or with its end missing): nothing in it can be found without \
         unpacking all before it. Pack it anew: zstd -dc FILE | omnimap pack - NEW"
            .to_owned()
    };
    let damaged = |what: String| {
        format!(
            "the seek table is damaged: {what}. The frames may be sound: zstd -dc FILE | omnimap pack - NEW"
        )
    };
    let file_bytes = packed.len();
    let Some(footer_at) = file_bytes.checked_sub(FOOTER_BYTES) else { return Ok(Err(no_table())) };
    let mut last = [0; FOOTER_BYTES as usize];
    read_exactly(packed, footer_at, &mut last)?;
    let footer = match Footer::parse(&last, file_bytes) {
        None => return Ok(Err(no_table())),
        Some(Err(what)) => return Ok(Err(damaged(what))),
        Some(Ok(footer)) => footer,
    };
    let table_at = file_bytes - footer.table_bytes;
    let table = footer.read_table(|at, length| {
        let mut bytes = vec![0; length];
        read_exactly(packed, table_at + at, &mut bytes)?;
        Ok::<_, StoreError>(bytes)
    })?;
    let table = match table {
        Ok(table) => table,
        Err(what) => return Ok(Err(damaged(what))),
    };
    let frames_end = skip_skippable(packed, table.packed_end(), table_at)?;
    if frames_end != table_at {
        let described = frames_end + footer.table_bytes;
        return Ok(Err(damaged(format!(
            "it describes a file of {described} bytes and the file has {file_bytes}"
        ))));
    }
    Ok(Ok(table))
}

/// Passes over skippable frames that the table does not list, between the last that it lists and itself.
fn skip_skippable(packed: &dyn BackingStore, mut at: u64, table_at: u64) -> Result<u64> {
    const HEADER_BYTES: u64 = 8;
    while at + HEADER_BYTES <= table_at {
        let mut header = [0; HEADER_BYTES as usize];
        read_exactly(packed, at, &mut header)?;
        let number = u64::from_le_bytes(header);
        if number & 0xFFFF_FFF0 != 0x184D_2A50 {
            break;
        }
        at += HEADER_BYTES + (number >> 32);
    }
    Ok(at)
}

fn read_exactly(store: &dyn BackingStore, offset: u64, into: &mut [u8]) -> Result<()> {
    let got = store.read_at(offset, into)?;
    if got == into.len() {
        Ok(())
    } else {
        Err(StoreError::Short { wanted: into.len() as u64, got: got as u64 })
    }
}
