//! A store that unpacks seekable zstd.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh64::xxh64;
use zstd::bulk::Decompressor;

use super::seek_table::{FOOTER_BYTES, Footer, SeekTable};
use crate::{BackingStore, Result, StoreError, Transfer, Version};

/// A frame longer than this cannot be mapped: one byte of it costs as much memory beside the budget.
const FRAME_BYTES_MAX: u64 = 64 << 20;
/// Unpacked frames kept for the next read, which often wants the rest of the same one.
const KEPT_BYTES_MAX: usize = 4 << 20;
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
        let no_table = "an ordinary zstd file, without a seek table: nothing in it can be found without unpacking all \
                        before it. Pack it anew: zstd -dc FILE | omnimap pack - NEW";
        let damaged = |what: String| {
            unusable(format!(
                "the seek table is damaged: {what}. The frames may be sound: zstd -dc FILE | omnimap pack - NEW"
            ))
        };
        let file_bytes = packed.len();
        if !Self::is_zstd(&*packed)? {
            return Err(unusable("not a zstd file".to_owned()));
        }
        let Some(footer_at) = file_bytes.checked_sub(FOOTER_BYTES) else {
            return Err(unusable(no_table.to_owned()));
        };
        let mut last = [0; FOOTER_BYTES as usize];
        read_exactly(&*packed, footer_at, &mut last)?;
        let footer = match Footer::parse(&last) {
            None => return Err(unusable(no_table.to_owned())),
            Some(Err(what)) => return Err(damaged(what)),
            Some(Ok(footer)) => footer,
        };
        let Some(table_at) = file_bytes.checked_sub(footer.table_bytes) else {
            return Err(damaged(format!("it claims {} bytes and the file has {file_bytes}", footer.table_bytes)));
        };
        let mut table = vec![0; footer.table_bytes as usize];
        read_exactly(&*packed, table_at, &mut table)?;
        let table = SeekTable::parse(&footer, &table, file_bytes).map_err(damaged)?;
        if table.longest() > FRAME_BYTES_MAX {
            return Err(unusable(format!(
                "a frame of {} bytes: at most {FRAME_BYTES_MAX} can be mapped. Pack it anew with smaller chunks: \
                 zstd -dc FILE | omnimap pack - NEW",
                table.longest()
            )));
        }
        Ok(ZstdStore { packed, table, decoders: Mutex::default(), kept: Mutex::default() })
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
        let mut bytes: usize = kept.iter().map(|u| u.bytes.len()).sum();
        while bytes > KEPT_BYTES_MAX && kept.len() > 1 {
            bytes -= kept.pop_front().map_or(0, |u| u.bytes.len());
        }
    }

    fn with_decoder<T>(&self, work: impl FnOnce(&mut Decoder) -> Result<T>) -> Result<T> {
        let idle = || self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut decoder = match taken {
            Some(decoder) => decoder,
            None => Decoder {
                context: Decompressor::new()
                    .map_err(|source| StoreError::Io { action: "making a zstd context", length: 0, source })?,
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
    fn unpack(&self, context: &mut Decompressor<'_>, frame: usize, packed: &[u8], into: &mut [u8]) -> Result<()> {
        let damaged = |what: String| StoreError::Corrupt {
            what: format!("frame {frame}, bytes {:?} of the packed file: {what}", self.table.packed_range(frame)),
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
                    let packed = &decoder.packed[(packed.start - from) as usize..(packed.end - from) as usize];
                    let (into, after) = rest.split_at_mut((bytes.end - bytes.start) as usize);
                    self.unpack(&mut decoder.context, frame, packed, into)?;
                    rest = after;
                }
                next = last + 1;
            }
            Ok(())
        })
    }

    /// A frame of which a part is wanted: from among those kept, or unpacked and kept.
    fn read_kept(&self, frame: usize) -> Result<Arc<Unpacked>> {
        if let Some(found) = self.kept().iter().find(|u| u.frame == frame) {
            return Ok(found.clone());
        }
        let range = self.table.range(frame);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read_whole(frame..frame + 1, &mut bytes)?;
        let unpacked = Arc::new(Unpacked { frame, bytes });
        self.keep(unpacked.clone());
        Ok(unpacked)
    }
}

impl BackingStore for ZstdStore {
    fn name(&self) -> &str {
        self.packed.name()
    }

    fn len(&self) -> u64 {
        self.table.len()
    }

    fn transfer(&self) -> Transfer {
        self.packed.transfer()
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

fn read_exactly(store: &dyn BackingStore, offset: u64, into: &mut [u8]) -> Result<()> {
    let got = store.read_at(offset, into)?;
    if got == into.len() {
        Ok(())
    } else {
        Err(StoreError::Short { wanted: into.len() as u64, got: got as u64 })
    }
}
