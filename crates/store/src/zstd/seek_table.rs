//! The table at the end of a seekable file.
//!
//! Our own, because the crate that knows the format throws the checksums away and does not say what is wrong with
//! a table that it refuses.

use std::ops::Range;

/// A skippable frame of kind 0xE (RFC 8878, 3.1.2).
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Magic and length.
const HEADER_BYTES: u64 = 8;
/// Count, descriptor, magic.
pub(super) const FOOTER_BYTES: u64 = 9;
const DESCRIPTOR_CHECKSUMS: u8 = 0x80;
const DESCRIPTOR_RESERVED: u8 = 0x7C;
/// The specification's `ZSTD_SEEKABLE_MAXFRAMES`.
pub(super) const FRAMES_MAX: u32 = 0x0800_0000;
/// Entries read at a time.
const ENTRIES_READ: u64 = 64 << 10;

/// One frame that holds bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    /// Where it begins in the file.
    packed_start: u64,
    /// Where its bytes begin in the object.
    start: u64,
    packed_bytes: u32,
    /// The low half of the XXH64 of its bytes; 0 if it has none. Not an `Option`, for there are millions of frames.
    checksum: u32,
}

/// The frames of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SeekTable {
    frames: Vec<Frame>,
    /// A frame has no checksum.
    lacks_checksums: bool,
    packed_end: u64,
    end: u64,
}

/// What the last bytes of a file say about its table.
pub(super) struct Footer {
    entry_bytes: u64,
    /// The whole table, with header and footer.
    pub(super) table_bytes: u64,
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

impl Footer {
    /// Decodes the end of a file of `file_bytes`; `None` if it does not end as a seekable one does.
    pub(super) fn parse(
        last: &[u8; FOOTER_BYTES as usize],
        file_bytes: u64,
    ) -> Option<Result<Footer, String>> {
        if number(&last[5..]) != SEEKABLE_MAGIC {
            return None;
        }
        let (frame_count, descriptor) = (number(last), last[4]);
        if frame_count > FRAMES_MAX {
            return Some(Err(format!("it claims {frame_count} frames")));
        }
        if descriptor & DESCRIPTOR_RESERVED != 0 {
            return Some(Err(format!("its descriptor is {descriptor:#04x}")));
        }
        let entry_bytes = if descriptor & DESCRIPTOR_CHECKSUMS != 0 { 12 } else { 8 };
        let table_bytes = HEADER_BYTES + u64::from(frame_count) * entry_bytes + FOOTER_BYTES;
        // Before anything is allocated for it: the smallest frame there is has 8 bytes.
        if table_bytes + u64::from(frame_count) * 8 > file_bytes {
            return Some(Err(format!("it claims {frame_count} frames, and the file has {file_bytes} bytes")));
        }
        Some(Ok(Footer { entry_bytes, table_bytes }))
    }
}

impl Footer {
    /// Decodes the table that `read` gives piece by piece (offset in the table, length), or says what is wrong with it.
    pub(super) fn read_table<E>(
        &self,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Result<SeekTable, String>, E> {
        let header = read(0, HEADER_BYTES as usize)?;
        if number(&header) != SKIPPABLE_MAGIC {
            return Ok(Err("it does not begin where its length says".to_owned()));
        }
        let claimed = u64::from(number(&header[4..])) + HEADER_BYTES;
        if claimed != self.table_bytes {
            return Ok(Err(format!("its frame has {claimed} bytes and should have {}", self.table_bytes)));
        }
        let mut table = SeekTable::default();
        let end = self.table_bytes - FOOTER_BYTES;
        let mut at = HEADER_BYTES;
        while at < end {
            let piece = (ENTRIES_READ * self.entry_bytes).min(end - at);
            for entry in read(at, piece as usize)?.chunks_exact(self.entry_bytes as usize) {
                let checksum = (self.entry_bytes == 12).then(|| number(&entry[8..]));
                let (packed_bytes, bytes) = (number(entry), number(&entry[4..]));
                if bytes == 0 {
                    // Nothing will ever be looked for in it.
                    table.packed_end += u64::from(packed_bytes);
                } else if let Err(what) = table.push(packed_bytes, bytes, checksum) {
                    return Ok(Err(what));
                }
            }
            at += piece;
        }
        Ok(Ok(table))
    }
}

impl SeekTable {
    /// Adds the next frame.
    pub(super) fn push(
        &mut self,
        packed_bytes: u32,
        bytes: u32,
        checksum: Option<u32>,
    ) -> Result<(), String> {
        // What zstd's own bound for incompressible data allows, and some room for headers (ZSTD_compressBound).
        let most = u64::from(bytes) + u64::from(bytes) / 128 + (64 << 10);
        if u64::from(packed_bytes) > most || (packed_bytes == 0 && bytes > 0) {
            return Err(format!("it claims that {bytes} bytes are packed into {packed_bytes}"));
        }
        if self.frames.len() >= FRAMES_MAX as usize || self.frames.try_reserve(1).is_err() {
            return Err("it has more frames than memory can hold".to_owned());
        }
        self.lacks_checksums |= checksum.is_none();
        self.frames.push(Frame {
            packed_start: self.packed_end,
            start: self.end,
            packed_bytes,
            checksum: checksum.unwrap_or(0),
        });
        self.packed_end += u64::from(packed_bytes);
        self.end += u64::from(bytes);
        Ok(())
    }

    /// Where the last frame ends in the file.
    pub(super) fn packed_end(&self) -> u64 {
        self.packed_end
    }

    /// The bytes that end a seekable file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let checksums = !self.lacks_checksums;
        let mut bytes = Vec::new();
        bytes.extend(SKIPPABLE_MAGIC.to_le_bytes());
        let entry_bytes = if checksums { 12 } else { 8 };
        let content = self.frames.len() as u64 * entry_bytes + FOOTER_BYTES;
        bytes.extend((content as u32).to_le_bytes());
        for (i, frame) in self.frames.iter().enumerate() {
            let range = self.range(i);
            bytes.extend(frame.packed_bytes.to_le_bytes());
            bytes.extend(((range.end - range.start) as u32).to_le_bytes());
            if checksums {
                bytes.extend(frame.checksum.to_le_bytes());
            }
        }
        bytes.extend((self.frames.len() as u32).to_le_bytes());
        bytes.push(if checksums { DESCRIPTOR_CHECKSUMS } else { 0 });
        bytes.extend(SEEKABLE_MAGIC.to_le_bytes());
        bytes
    }

    /// Length of the object in bytes.
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// The number of frames.
    pub(super) fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// The frame that holds a byte of the object.
    pub(super) fn frame_at(&self, offset: u64) -> usize {
        self.frames.partition_point(|f| f.start <= offset).saturating_sub(1)
    }

    /// The bytes of the object that a frame holds.
    pub(super) fn range(&self, frame: usize) -> Range<u64> {
        self.frames[frame].start..self.frames.get(frame + 1).map_or(self.end, |f| f.start)
    }

    /// The bytes of the file that a frame takes.
    pub(super) fn packed_range(&self, frame: usize) -> Range<u64> {
        let Frame { packed_start, packed_bytes, .. } = self.frames[frame];
        packed_start..packed_start + u64::from(packed_bytes)
    }

    /// The checksum of a frame's bytes, if the table has any.
    pub(super) fn checksum(&self, frame: usize) -> Option<u32> {
        (!self.lacks_checksums).then(|| self.frames[frame].checksum)
    }

    /// The longest frame of the object, in bytes.
    pub(super) fn longest(&self) -> u64 {
        (0..self.frame_count()).map(|i| self.range(i)).map(|r| r.end - r.start).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_around_empty_ones() {
        let mut table = SeekTable::default();
        for bytes in [10, 0, 0, 5, 0] {
            table.push(3, bytes, None).unwrap();
        }
        let at = |offset| (table.range(table.frame_at(offset)), table.packed_range(table.frame_at(offset)));
        assert_eq!(at(9), (0..10, 0..3));
        assert_eq!(at(10), (10..15, 9..12));
        assert_eq!(at(14), (10..15, 9..12));
        assert_eq!(table.packed_end(), 15);
    }

    #[test]
    fn what_is_encoded_is_parsed() {
        for checksum in [None, Some(7)] {
            let mut table = SeekTable::default();
            for i in 1..100 {
                table.push(i, i * 2, checksum).unwrap();
            }
            let bytes = table.encode();
            let last = bytes[bytes.len() - FOOTER_BYTES as usize..].try_into().unwrap();
            let footer = Footer::parse(last, 1 << 20).unwrap().unwrap();
            assert_eq!(footer.table_bytes, bytes.len() as u64);
            let read = |at: u64, length| Ok::<_, ()>(bytes[at as usize..][..length].to_vec());
            assert_eq!(footer.read_table(read).unwrap().unwrap(), table);
        }
    }

    #[test]
    fn impossible_frames_are_refused() {
        let mut table = SeekTable::default();
        assert!(table.push(u32::MAX, 1, None).is_err());
        assert!(table.push(0, 1, None).is_err());
        table.push(1 << 16, 0, None).unwrap();
    }
}
