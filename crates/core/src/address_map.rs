//! Things by the addresses that they take, none overlapping: what is mapped, to be cut anywhere.

use std::collections::BTreeMap;
use std::ops::Range;

/// Something that takes a range of addresses, and of which a part is something of the same kind.
pub trait Span: Sized {
    /// Its addresses; never none.
    fn addresses(&self) -> Range<usize>;

    /// What is left of it when it has only the addresses of `range`, which are some of its own.
    fn part(&self, range: Range<usize>) -> Self;
}

/// Spans by address.
///
/// ```text
/// before   [---- a ----][-- b --]     [-- c --]
/// cut           |-----------------------|
/// after    [ a ]                        [ c ]
/// ```
#[derive(Debug, Clone)]
pub struct AddressMap<T> {
    spans: BTreeMap<usize, T>,
}

impl<T> Default for AddressMap<T> {
    fn default() -> AddressMap<T> {
        AddressMap { spans: BTreeMap::new() }
    }
}

impl<T: Span> AddressMap<T> {
    /// Puts a span where none is.
    ///
    /// # Panics
    /// In a debug build, if one is there.
    pub fn insert(&mut self, span: T) {
        let range = span.addresses();
        debug_assert!(!range.is_empty() && self.overlapping(&range).next().is_none(), "one at {range:x?}");
        self.spans.insert(range.start, span);
    }

    /// Takes all addresses of a range out; what was there, cut to the range, in the order of the addresses.
    pub fn cut(&mut self, range: Range<usize>) -> Vec<T> {
        let found: Vec<usize> = self.overlapping(&range).map(|span| span.addresses().start).collect();
        let mut removed = Vec::with_capacity(found.len());
        for start in found {
            let Some(span) = self.spans.remove(&start) else { continue };
            let all = span.addresses();
            for kept in [all.start..range.start.max(all.start), range.end.min(all.end)..all.end] {
                if !kept.is_empty() {
                    self.spans.insert(kept.start, span.part(kept));
                }
            }
            let inside = both(&all, &range);
            removed.push(if inside == all { span } else { span.part(inside) });
        }
        removed
    }

    /// The span that has an address.
    pub fn at(&self, address: usize) -> Option<&T> {
        let (_, span) = self.spans.range(..=address).next_back()?;
        span.addresses().contains(&address).then_some(span)
    }

    /// The spans that have some of the addresses, whole, in their order.
    pub fn overlapping(&self, range: &Range<usize>) -> impl Iterator<Item = &T> {
        let (start, end) = (range.start, range.end.max(range.start));
        let before = self.spans.range(..start).next_back().map(|(_, span)| span);
        let before = before.filter(|span| span.addresses().end > start && start < end);
        before.into_iter().chain(self.spans.range(start..end).map(|(_, span)| span))
    }

    /// As [`overlapping`](Self::overlapping), each cut to the range.
    pub fn parts(&self, range: &Range<usize>) -> Vec<T> {
        self.overlapping(range).map(|span| span.part(both(&span.addresses(), range))).collect()
    }

    /// All spans, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.spans.values()
    }

    /// How many spans there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}

fn both(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Piece(usize, usize, char);

    impl Span for Piece {
        fn addresses(&self) -> Range<usize> {
            self.0..self.1
        }
        fn part(&self, range: Range<usize>) -> Piece {
            assert!(self.0 <= range.start && range.end <= self.1 && !range.is_empty());
            Piece(range.start, range.end, self.2)
        }
    }

    /// Every cut of every small arrangement, beside an array that has a letter for each address.
    #[test]
    fn u02_a_cut_takes_the_range_and_nothing_else() {
        for mask in 0..64_u32 {
            let mut map = AddressMap::default();
            let mut plain = ['.'; 12];
            for (i, letter) in ('a'..='f').enumerate() {
                if mask & (1 << i) != 0 {
                    map.insert(Piece(2 * i, 2 * i + 2, letter));
                    plain[2 * i..2 * i + 2].fill(letter);
                }
            }
            for start in 0..12 {
                for end in start..=12 {
                    let (mut map, mut plain) = (map.clone(), plain);
                    let removed = map.cut(start..end);
                    let mut shown = ['.'; 12];
                    map.iter().for_each(|p| shown[p.0..p.1].fill(p.2));
                    let mut gone = ['.'; 12];
                    removed.iter().for_each(|p| gone[p.0..p.1].fill(p.2));
                    let mut expected = ['.'; 12];
                    expected[start..end].swap_with_slice(&mut plain[start..end]);
                    assert_eq!((shown, gone), (plain, expected), "{mask:b} {start}..{end}");
                    for (address, letter) in plain.iter().enumerate() {
                        assert_eq!(map.at(address).map_or('.', |p| p.2), *letter);
                    }
                }
            }
        }
    }
}
