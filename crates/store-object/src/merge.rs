//! Which reads go into one request. Pure.

use std::ops::Range;

/// Bytes between two reads that are cheaper to fetch than to ask for the second one alone.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// The longest request that is made of several reads.
const MERGED_BYTES_MAX: u64 = 2 << 20;

/// A request, and which reads it answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) range: Range<u64>,
    pub(crate) reads: Vec<usize>,
}

/// Puts neighbouring reads together. Every read, empty ones aside, is in one request.
pub(crate) fn merge(reads: &[Range<u64>]) -> Vec<Request> {
    let mut order: Vec<usize> = (0..reads.len()).filter(|n| !reads[*n].is_empty()).collect();
    order.sort_unstable_by_key(|n| (reads[*n].start, reads[*n].end));
    let mut requests: Vec<Request> = Vec::new();
    for number in order {
        let read = reads[number].clone();
        if let Some(last) = requests.last_mut() {
            let end = last.range.end.max(read.end);
            let near = read.start <= last.range.end.saturating_add(GAP_BYTES_MAX);
            if near && (end - last.range.start <= MERGED_BYTES_MAX || end == last.range.end) {
                last.range.end = end;
                last.reads.push(number);
                continue;
            }
        }
        requests.push(Request { range: read, reads: vec![number] });
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(reads: &[Range<u64>]) -> Vec<(Range<u64>, Vec<usize>)> {
        merge(reads).into_iter().map(|r| (r.range, r.reads)).collect()
    }

    #[test]
    fn neighbours_go_together_and_what_lies_apart_does_not() {
        let reads = [1_000_000..1_004_096, 0..4096, 8192..12288, 4096..8192, 5..5];
        assert_eq!(merged(&reads), [(0..12288, vec![1, 3, 2]), (1_000_000..1_004_096, vec![0])]);
    }

    #[test]
    fn a_gap_that_costs_less_than_a_request_is_fetched_too() {
        let near = 4096 + GAP_BYTES_MAX..8192 + GAP_BYTES_MAX;
        assert_eq!(merged(&[0..4096, near.clone()]), [(0..near.end, vec![0, 1])]);
        assert_eq!(merged(&[0..4095, near]).len(), 2);
        assert_eq!(
            merged(&[0..4096, 20 << 10..24 << 10]).len(),
            1,
            "16 KiB go over in far less time than a request"
        );
    }

    #[test]
    fn a_request_does_not_grow_without_end() {
        let reads: Vec<Range<u64>> = (0..64).map(|n| n << 16..(n + 1) << 16).collect();
        let requests = merge(&reads);
        assert_eq!(requests.len(), 2);
        assert!(requests.iter().all(|r| r.range.end - r.range.start == MERGED_BYTES_MAX));
        // A long read alone stays whole, and takes what lies within.
        assert_eq!(merged(&[0..8 << 20, 4096..8192]), [(0..8 << 20, vec![0, 1])]);
    }
}
