//! Counters through the `metrics` facade.
#![cfg(feature = "metrics")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use omnimap::MapOptions;
use omnimap_testkit::{pattern, pattern_store, within};

#[derive(Clone, Default)]
struct Recorded {
    counters: Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>,
    waits: Arc<Waits>,
}

#[derive(Default)]
struct Waits(AtomicU64);

impl HistogramFn for Waits {
    fn record(&self, seconds: f64) {
        assert!((0.0..60.0).contains(&seconds));
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = self.counters.lock().unwrap();
        Counter::from_arc(counters.entry(key.name().to_owned()).or_default().clone())
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.waits.clone())
    }
}

#[test]
fn metrics_and_figures_agree() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let recorded = Recorded::default();
    metrics::set_global_recorder(recorded.clone()).unwrap();
    let stats = within(Duration::from_secs(60), || {
        let mapping = MapOptions::new().budget(1 << 20).map(pattern_store(4 << 20)).unwrap();
        assert!((0..).zip(mapping.iter()).all(|(at, b)| *b == pattern(at)));
        mapping.read_at(0, &mut [0; 10]).unwrap();
        mapping.stats()
    });
    let counters = recorded.counters.lock().unwrap();
    for (name, value) in stats.counters() {
        let told = counters.get(&format!("omnimap_{name}")).map_or(0, |c| c.load(Ordering::Relaxed));
        assert_eq!(told, value, "{name}");
    }
    assert!(stats.fills > 0);
    assert_eq!(recorded.waits.0.load(Ordering::Relaxed), stats.waiting.count());
}
