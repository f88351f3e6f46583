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
const FRAMES_MAX: u32 = 0x0800_0000;

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Where it begins in the file.
    packed_start: u64,
    /// Where its bytes begin in the object.
    start: u64,
    /// The low half of the XXH64 of its bytes.
    checksum: Option<u32>,
}

/// The frames of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeekTable {
    frames: Vec<Frame>,
    packed_end: u64,
    end: u64,
}

/// What the last bytes of a file say about its table.
pub(super) struct Footer {
    frame_count: u32,
    entry_bytes: u64,
    /// The whole table, with header and footer.
    pub(super) table_bytes: u64,
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

impl Footer {
    /// `None` if the file does not end as a seekable one does.
    pub(super) fn parse(last: &[u8; FOOTER_BYTES as usize]) -> Option<Result<Footer, String>> {
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
        Some(Ok(Footer { frame_count, entry_bytes, table_bytes }))
    }
}

impl SeekTable {
    /// A table to which frames are added.
    pub(super) fn new() -> SeekTable {
        SeekTable { frames: Vec::new(), packed_end: 0, end: 0 }
    }

    /// Adds the next frame.
    pub(super) fn push(&mut self, packed_bytes: u32, bytes: u32, checksum: Option<u32>) {
        self.frames.push(Frame { packed_start: self.packed_end, start: self.end, checksum });
        self.packed_end += u64::from(packed_bytes);
        self.end += u64::from(bytes);
    }

    /// Decodes the table of a file of `file_bytes`, or says what is wrong with it.
    pub(super) fn parse(footer: &Footer, table: &[u8], file_bytes: u64) -> Result<SeekTable, String> {
        if number(table) != SKIPPABLE_MAGIC {
            return Err("it does not begin where its length says".to_owned());
        }
        let claimed = u64::from(number(&table[4..])) + HEADER_BYTES;
        if claimed != footer.table_bytes {
            return Err(format!("its frame has {claimed} bytes and should have {}", footer.table_bytes));
        }
        let mut parsed = SeekTable::new();
        let entries = &table[HEADER_BYTES as usize..table.len() - FOOTER_BYTES as usize];
        parsed.frames.reserve_exact(footer.frame_count as usize);
        for entry in entries.chunks_exact(footer.entry_bytes as usize) {
            let checksum = (footer.entry_bytes == 12).then(|| number(&entry[8..]));
            parsed.push(number(entry), number(&entry[4..]), checksum);
        }
        let described = parsed.packed_end + footer.table_bytes;
        if described != file_bytes {
            return Err(format!("it describes a file of {described} bytes and the file has {file_bytes}"));
        }
        Ok(parsed)
    }

    /// The bytes that end a seekable file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let checksums = self.frames.iter().all(|f| f.checksum.is_some());
        let mut bytes = Vec::new();
        bytes.extend(SKIPPABLE_MAGIC.to_le_bytes());
        let entry_bytes = if checksums { 12 } else { 8 };
        let content = self.frames.len() as u64 * entry_bytes + FOOTER_BYTES;
        bytes.extend((content as u32).to_le_bytes());
        for (i, frame) in self.frames.iter().enumerate() {
            let size = |r: Range<u64>| ((r.end - r.start) as u32).to_le_bytes();
            bytes.extend(size(self.packed_range(i)));
            bytes.extend(size(self.range(i)));
            if let (true, Some(checksum)) = (checksums, frame.checksum) {
                bytes.extend(checksum.to_le_bytes());
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
        // The last that begins at or before it: empty frames share their start with the one that holds the byte.
        self.frames.partition_point(|f| f.start <= offset).saturating_sub(1)
    }

    /// The bytes of the object that a frame holds.
    pub(super) fn range(&self, frame: usize) -> Range<u64> {
        self.frames[frame].start..self.frames.get(frame + 1).map_or(self.end, |f| f.start)
    }

    /// The bytes of the file that a frame takes.
    pub(super) fn packed_range(&self, frame: usize) -> Range<u64> {
        self.frames[frame].packed_start..self.frames.get(frame + 1).map_or(self.packed_end, |f| f.packed_start)
    }

    /// The checksum of a frame's bytes, if the table has any.
    pub(super) fn checksum(&self, frame: usize) -> Option<u32> {
        self.frames[frame].checksum
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
        let mut table = SeekTable::new();
        for bytes in [10, 0, 0, 5, 0] {
            table.push(3, bytes, None);
        }
        assert_eq!(table.range(table.frame_at(9)), 0..10);
        assert_eq!(table.range(table.frame_at(10)), 10..15);
        assert_eq!(table.range(table.frame_at(14)), 10..15);
    }

    #[test]
    fn what_is_encoded_is_parsed() {
        for checksum in [None, Some(7)] {
            let mut table = SeekTable::new();
            for i in 0..100 {
                table.push(i, i * 2, checksum);
            }
            let bytes = table.encode();
            let file_bytes = table.packed_end + bytes.len() as u64;
            let last = bytes[bytes.len() - FOOTER_BYTES as usize..].try_into().unwrap();
            let footer = Footer::parse(last).unwrap().unwrap();
            assert_eq!(footer.table_bytes, bytes.len() as u64);
            assert_eq!(SeekTable::parse(&footer, &bytes, file_bytes).unwrap(), table);
        }
    }
}
