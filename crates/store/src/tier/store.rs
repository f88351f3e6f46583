//! A store behind the tier.

use std::fs;
use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use super::span::{HEAD_BYTES, PAGE_BYTES, SPAN_BYTES, SPAN_PAGES, Span};
use super::{DiskTier, make_directory, span_path};
use crate::{BackingStore, ReadAt, Result, StoreError, Transfer, Version};

/// A store whose bytes are kept in a [`DiskTier`]. Read-only.
pub(super) struct Tiered {
    tier: Arc<DiskTier>,
    inner: Arc<dyn BackingStore>,
    length: u64,
    key: u128,
}

/// One read on its way.
struct Wanted {
    /// The pages around the bytes that the tier does not have: from the first to the last of them.
    missing: Range<u64>,
    /// Bytes that the read gives.
    count: usize,
}

impl Tiered {
    pub(super) fn new(tier: Arc<DiskTier>, inner: Arc<dyn BackingStore>, version: &Version) -> Tiered {
        let key = xxh3_128(format!("{}\0{version}", inner.name()).as_bytes());
        let length = inner.len();
        Tiered { tier, inner, length, key }
    }

    /// Bytes of the object that the tier has entries of, in whole pages.
    pub(super) fn bytes_kept(&self) -> u64 {
        let spans = 0..self.length.div_ceil(SPAN_BYTES);
        let of_span = |number| match self.span(number) {
            Some(span) => (0..SPAN_PAGES).filter(|page| span.has(*page)).count() as u64 * PAGE_BYTES,
            None => 0,
        };
        spans.map(of_span).sum::<u64>().min(self.length)
    }

    fn span(&self, number: u64) -> Option<Span> {
        Span::open(&span_path(&self.tier.directory, self.key, number), self.key, number)
    }

    /// Copies what the tier has of a read.
    fn find(&self, offset: u64, into: &mut [u8]) -> Wanted {
        let end = offset.saturating_add(into.len() as u64).min(self.length);
        let start = offset.min(end);
        let mut missing: Option<Range<u64>> = None;
        let mut open: Option<(u64, Option<Span>)> = None;
        let mut bytes = [0; PAGE_BYTES as usize];
        for page in start / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            let number = page / SPAN_PAGES;
            if open.as_ref().is_none_or(|(n, _)| *n != number) {
                open = Some((number, self.span(number).inspect(Span::note_use)));
            }
            let span = open.as_ref().and_then(|(_, span)| span.as_ref());
            if span.is_some_and(|span| span.get(page % SPAN_PAGES, &mut bytes)) {
                copy_part(page * PAGE_BYTES, &bytes, start..end, into);
            } else {
                let first = missing.map_or(page, |range| range.start);
                missing = Some(first..page + 1);
            }
        }
        Wanted { missing: missing.unwrap_or(0..0), count: (end - start) as usize }
    }

    /// Keeps pages that were fetched, as far as that succeeds: nobody depends on it.
    fn keep(&self, first_page: u64, bytes: &[u8]) {
        let mut page = first_page;
        let mut rest = bytes;
        while !rest.is_empty() {
            let in_span = page % SPAN_PAGES;
            let count = ((SPAN_PAGES - in_span) * PAGE_BYTES).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at(count);
            if let Err(error) = self.keep_in_span(page / SPAN_PAGES, in_span, part) {
                tracing::debug!(object = self.inner.name(), page, %error, "not kept in the disk tier");
            }
            page += (SPAN_PAGES - in_span).min(count as u64 / PAGE_BYTES);
            rest = after;
        }
    }

    fn keep_in_span(&self, number: u64, page: u64, bytes: &[u8]) -> std::io::Result<()> {
        let path = span_path(&self.tier.directory, self.key, number);
        let head = if path.exists() { 0 } else { HEAD_BYTES };
        if !self.tier.take(head + bytes.len() as u64)? {
            return Ok(());
        }
        if let Some(directory) = path.parent() {
            make_directory(directory)?;
        }
        let mut span = Span::open_to_write(&path, self.key, number)?;
        // It was there, and has gone meanwhile.
        if head == 0 && span.is_new() && !self.tier.take(HEAD_BYTES)? {
            return fs::remove_file(path);
        }
        span.put(page, bytes)
    }

    /// A buffer for pages; what is behind the object's end is zeros.
    fn buffer(&self, pages: &Range<u64>) -> Vec<u8> {
        vec![0; ((pages.end - pages.start) * PAGE_BYTES) as usize]
    }

    /// What of some pages is inside the object.
    fn inside(&self, pages: &Range<u64>) -> usize {
        ((pages.end * PAGE_BYTES).min(self.length) - pages.start * PAGE_BYTES) as usize
    }

    fn arrive(
        &self,
        wanted: &Wanted,
        fetched: &[u8],
        got: usize,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize> {
        let inside = self.inside(&wanted.missing);
        if got < inside {
            return Err(StoreError::Short { wanted: inside as u64, got: got as u64 });
        }
        self.keep(wanted.missing.start, fetched);
        let range = offset..offset + wanted.count as u64;
        copy_part(wanted.missing.start * PAGE_BYTES, fetched, range, into);
        Ok(wanted.count)
    }
}

/// Copies what of `bytes`, which begin at `at`, belongs into a read of `range`.
fn copy_part(at: u64, bytes: &[u8], range: Range<u64>, into: &mut [u8]) {
    let (start, end) = (range.start.max(at), range.end.min(at + bytes.len() as u64));
    if start < end {
        let part = &bytes[(start - at) as usize..(end - at) as usize];
        into[(start - range.start) as usize..][..part.len()].copy_from_slice(part);
    }
}

impl BackingStore for Tiered {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.length
    }

    fn transfer(&self) -> Transfer {
        self.inner.transfer()
    }

    fn chunk_at(&self, offset: u64) -> Range<u64> {
        self.inner.chunk_at(offset)
    }

    fn version(&self) -> Option<Version> {
        self.inner.version()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let wanted = self.find(offset, into);
        if wanted.missing.is_empty() {
            return Ok(wanted.count);
        }
        let mut fetched = self.buffer(&wanted.missing);
        let inside = self.inside(&wanted.missing);
        let got = self.inner.read_at(wanted.missing.start * PAGE_BYTES, &mut fetched[..inside])?;
        self.arrive(&wanted, &fetched, got, offset, into)
    }

    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        let all: Vec<Wanted> = reads.iter_mut().map(|read| self.find(read.offset, read.into)).collect();
        let mut numbers = Vec::new();
        for (number, wanted) in all.iter().enumerate() {
            if wanted.missing.is_empty() {
                came(number, Ok(wanted.count));
            } else {
                numbers.push(number);
            }
        }
        let mut fetched: Vec<Vec<u8>> = numbers.iter().map(|n| self.buffer(&all[*n].missing)).collect();
        let mut outcomes: Vec<Option<Result<usize>>> = numbers.iter().map(|_| None).collect();
        let mut inner_reads: Vec<ReadAt<'_>> = numbers
            .iter()
            .zip(&mut fetched)
            .map(|(number, buffer)| {
                let missing = &all[*number].missing;
                let inside = self.inside(missing);
                ReadAt { offset: missing.start * PAGE_BYTES, into: &mut buffer[..inside] }
            })
            .collect();
        self.inner.read_each(&mut inner_reads, &mut |n, outcome| outcomes[n] = Some(outcome));
        for ((number, buffer), outcome) in numbers.into_iter().zip(&fetched).zip(outcomes) {
            let read = &mut reads[number];
            let outcome = outcome.unwrap_or(Ok(0));
            let arrived =
                outcome.and_then(|got| self.arrive(&all[number], buffer, got, read.offset, read.into));
            came(number, arrived);
        }
    }

    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        let inner = self.inner.reopen()?;
        // The lease is the parent's.
        let tier = DiskTier::open(self.tier.directory.clone(), self.tier.bytes_max)?;
        Ok(tier.before(inner))
    }
}
