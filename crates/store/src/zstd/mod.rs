//! Seekable zstd: independent frames and a table of where each begins.
//!
//! The format is the one of the zstd project (`contrib/seekable_format/zstd_seekable_compression_format.md`, version
//! 0.1.0): any zstd decoder unpacks the file from its beginning, and skips the table.

pub(crate) mod pack;
pub(crate) mod store;

mod seek_table;
