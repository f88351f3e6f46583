//! The order in which pages are accessed: the same for every contender, from a seed.

use omnimap_testkit::Prng;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Pattern {
    /// From the first page on, and again from there after the last.
    Forward,
    /// From the last page on.
    Backward,
    /// Every fifth page.
    Strided,
    /// Any page, each as likely as any other.
    Uniform,
    /// Any page, few of them often: the r-th most popular in proportion to r^-0.99.
    Zipf,
}

const STRIDE: u64 = 5;
const ZIPF_EXPONENT: f64 = 0.99;

/// The numbers of the pages.
pub(super) fn pages(pattern: Pattern, seed: u64, pages: u64, count: u64) -> Vec<u32> {
    let mut random = Prng::new(seed);
    let zipf = (pattern == Pattern::Zipf).then(|| Zipf::new(pages));
    let mut page = |index: u64| match pattern {
        Pattern::Forward => index % pages,
        Pattern::Backward => pages - 1 - index % pages,
        Pattern::Strided => index * STRIDE % pages,
        Pattern::Uniform => random.below(pages),
        Pattern::Zipf => zipf.as_ref().map_or(0, |zipf| zipf.page(&mut random)),
    };
    (0..count).map(|index| page(index) as u32).collect()
}

/// Popularity by rank, as YCSB draws it (Gray et al., "Quickly generating billion-record synthetic databases", 1994).
struct Zipf {
    pages: u64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(pages: u64) -> Zipf {
        let zeta = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-ZIPF_EXPONENT)).sum::<f64>();
        let all = zeta(pages);
        let eta = (1.0 - (2.0 / pages as f64).powf(1.0 - ZIPF_EXPONENT)) / (1.0 - zeta(2) / all);
        Zipf { pages, zeta: all, eta }
    }

    fn page(&self, random: &mut Prng) -> u64 {
        // A prime factor puts popular pages far from each other, and no two ranks on one page.
        const SCATTER: u64 = 2_654_435_761;
        let uniform = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let scaled = uniform * self.zeta;
        let rank = if scaled < 1.0 {
            0
        } else if scaled < 1.0 + 0.5f64.powf(ZIPF_EXPONENT) {
            1
        } else {
            let base = self.eta.mul_add(uniform, 1.0 - self.eta);
            (self.pages as f64 * base.powf(1.0 / (1.0 - ZIPF_EXPONENT))) as u64
        };
        rank.min(self.pages - 1) * SCATTER % self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::{Pattern, pages};

    #[test]
    fn sequences_stay_inside_and_are_the_same_for_the_same_seed() {
        for pattern in
            [Pattern::Forward, Pattern::Backward, Pattern::Strided, Pattern::Uniform, Pattern::Zipf]
        {
            let drawn = pages(pattern, 3, 1000, 5000);
            assert_eq!(drawn, pages(pattern, 3, 1000, 5000));
            assert!(drawn.iter().all(|page| *page < 1000), "{pattern:?}");
        }
    }

    #[test]
    fn of_a_zipf_sequence_a_tenth_of_the_pages_has_most_accesses() {
        let mut counts = vec![0; 1000];
        pages(Pattern::Zipf, 1, 1000, 100_000).iter().for_each(|page| counts[*page as usize] += 1);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let popular: u32 = counts[..100].iter().sum();
        assert!((60_000..80_000).contains(&popular), "{popular} of 100,000");
    }
}
