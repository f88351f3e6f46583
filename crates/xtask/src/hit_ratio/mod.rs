//! `cargo xtask hit-ratio`: how many accesses find their page in the cache, by the engine's policy and by others, the
//! optimum among them.

mod ours;
mod policies;
mod traces;

use anyhow::Result;
use serde_json::{Map, Value, json};

use ours::Ours;
use policies::{Belady, Clock, Lru, MostUsed, Policy, S3Fifo};
use traces::Trace;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Seed of the synthetic traces; the same seed gives the same figures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The columns of the table. `most used` knows how often each page will be used, but not when: no policy that learns from
/// the past does better where accesses do not depend on each other (zipf, uniform). The optimum knows when, too.
const POLICIES: [&str; 6] = ["omnimap", "LRU", "CLOCK", "S3-FIFO", "most used", "Belady"];

impl Arguments {
    pub(crate) fn run(&self) -> Result<()> {
        let mut rows = Vec::new();
        for trace in traces::all(self.seed)? {
            let ratios = ratios(&trace);
            rows.push((trace, ratios));
        }
        if self.json {
            println!("{:#}", json(&rows));
            return Ok(());
        }
        println!("{:<24}{}", "hit ratio, %", POLICIES.map(|name| format!("{name:>11}")).concat());
        for (trace, ratios) in &rows {
            println!("{:<24}{}", trace.name, ratios.map(|ratio| format!("{ratio:>11.1}")).concat());
        }
        Ok(())
    }
}

fn json(rows: &[(Trace, [f64; POLICIES.len()])]) -> Value {
    let rows = rows.iter().map(|(trace, ratios)| {
        let ratios: Map<String, Value> =
            POLICIES.into_iter().zip(ratios).map(|(name, ratio)| (name.to_owned(), json!(ratio))).collect();
        json!({
            "trace": trace.name,
            "cache_pages": trace.cache_pages,
            "accesses": trace.accesses.len(),
            "warm_up_accesses": trace.warm_up,
            "hit_ratio_percent": ratios,
        })
    });
    json!({ "traces": rows.collect::<Vec<_>>() })
}

/// By each policy, in percent of the accesses after the warm-up.
fn ratios(trace: &Trace) -> [f64; POLICIES.len()] {
    let pages = trace.accesses.iter().max().map_or(0, |page| *page as usize + 1);
    let policies: [Box<dyn Policy>; POLICIES.len()] = [
        Box::new(Ours::new(trace.cache_pages, pages)),
        Box::new(Lru::new(trace.cache_pages)),
        Box::new(Clock::new(trace.cache_pages)),
        Box::new(S3Fifo::new(trace.cache_pages)),
        Box::new(MostUsed::new(trace.cache_pages, &trace.accesses)),
        Box::new(Belady::new(trace.cache_pages, &trace.accesses)),
    ];
    let (warm_up, counted) = trace.accesses.split_at(trace.warm_up);
    policies.map(|mut policy| {
        warm_up.iter().for_each(|page| _ = policy.access(*page));
        let hits = counted.iter().filter(|page| policy.access(**page)).count();
        100.0 * hits as f64 / counted.len() as f64
    })
}
