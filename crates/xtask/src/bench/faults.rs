//! What a fault costs when the store has the bytes in memory, in each fault mode.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use omnimap::store::{BackingStore, MemoryStore};
use omnimap::{Advice, FaultMode, MapOptions, Mapping};
use omnimap_testkit::Prng;

use super::Arguments;
use super::mechanism::{Mechanism, fill_alone};

const OBJECT_BYTES: u64 = 256 << 20;
const BUDGET_BYTES: u64 = 32 << 20;
/// In a run of [`evicting`].
pub(super) const ACCESSES: u32 = 50_000;
/// In a run of [`first_touches`].
pub(super) const TOUCHES: u64 = BUDGET_BYTES / PAGE_BYTES;
const PAGE_BYTES: u64 = 4096;

/// Who brings the pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Omnimap(FaultMode),
    /// Omnimap, asked by calls: no fault.
    Checked,
    /// Faults that are served without an engine.
    Mechanism(FaultMode),
    /// Fills that nobody waits for: the system call that no fault can do without.
    FillAlone,
}

const MODES: [Server; 3] = [
    Server::Omnimap(FaultMode::Worker),
    Server::Omnimap(FaultMode::InThread),
    Server::Omnimap(FaultMode::Trap),
];

const MECHANISM: [Server; 2] = [Server::Mechanism(FaultMode::Worker), Server::Mechanism(FaultMode::InThread)];

impl Server {
    fn name(self) -> String {
        match self {
            Server::Omnimap(mode) => mode.to_string(),
            Server::Checked => "checked".to_owned(),
            Server::Mechanism(mode) => format!("{mode}, no engine"),
            Server::FillAlone => "fill alone".to_owned(),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    println!("faults, memory store, one eighth in memory, evicting, an access:");
    let servers = [&MODES[..], &MECHANISM, &[Server::Checked]].concat();
    print(&servers, evicting(&servers, arguments.runs)?, ACCESSES.into());
    println!("faults, memory store, first touches, an access:");
    let servers = [&MODES[..], &MECHANISM, &[Server::FillAlone]].concat();
    print(&servers, first_touches(&servers, arguments.runs)?, TOUCHES);
    Ok(())
}

fn print(servers: &[Server], times: Vec<Vec<Duration>>, accesses: u64) {
    for (server, mut times) in servers.iter().zip(times) {
        times.sort_unstable();
        let time = times[times.len() / 2];
        println!("  {:20} {:6.2} µs", server.name(), time.as_secs_f64() * 1e6 / accesses as f64);
    }
}

/// Bytes of a store that are shown to whoever reads.
enum Shown {
    Mapping(Mapping),
    Checked(Mapping),
    Mechanism(Mechanism),
}

impl Shown {
    fn read(&self, offset: u64) -> Result<()> {
        let byte = match self {
            Shown::Mapping(mapping) => mapping[offset as usize],
            Shown::Mechanism(mechanism) => mechanism.bytes()[offset as usize],
            Shown::Checked(mapping) => {
                let mut byte = [0];
                mapping.read_at(offset, &mut byte)?;
                byte[0]
            }
        };
        black_box(byte);
        Ok(())
    }
}

/// A store that has its bytes in memory, under a budget.
fn show(server: Server, store: &Arc<MemoryStore>, budget_bytes: u64) -> Result<Shown> {
    let mut options = MapOptions::new();
    options.budget(budget_bytes).advice(Advice::Random);
    Ok(match server {
        Server::Omnimap(mode) => Shown::Mapping(options.fault_mode(mode).map_shared(store.clone())?),
        Server::Checked => Shown::Checked(options.map_shared(store.clone())?),
        Server::Mechanism(mode) => {
            let bytes = store.len();
            Shown::Mechanism(Mechanism::new(mode, store.clone(), bytes, budget_bytes)?)
        }
        Server::FillAlone => bail!("fills alone show nothing"),
    })
}

/// Random accesses to what does not fit: what each run took.
pub(super) fn evicting(servers: &[Server], runs: usize) -> Result<Vec<Vec<Duration>>> {
    let mut bytes = vec![0u8; OBJECT_BYTES as usize];
    let mut random = Prng::new(3);
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.next_u64().to_ne_bytes();
    }
    let store = Arc::new(MemoryStore::new("memory", bytes));
    let shown =
        servers.iter().map(|server| show(*server, &store, BUDGET_BYTES)).collect::<Result<Vec<_>>>()?;
    let mut times = vec![Vec::new(); servers.len()];
    for seed in 1..=runs.max(1) as u64 {
        for (shown, times) in shown.iter().zip(&mut times) {
            let mut random = Prng::new(seed);
            let begin = Instant::now();
            for _ in 0..ACCESSES {
                shown.read(random.below(OBJECT_BYTES))?;
            }
            times.push(begin.elapsed());
        }
    }
    Ok(times)
}

/// Each page once, in an order that is no stream: by a stride that is odd, where there are 2^n.
pub(super) fn scattered(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages).map(move |index| index * 2_731 % pages)
}

/// What a fault costs where there is room: what each run took.
pub(super) fn first_touches(servers: &[Server], runs: usize) -> Result<Vec<Vec<Duration>>> {
    let store = Arc::new(MemoryStore::new("memory", vec![1; BUDGET_BYTES as usize]));
    let touches = |server: Server| -> Result<Duration> {
        if server == Server::FillAlone {
            return fill_alone(TOUCHES);
        }
        // A budget of its own: of the others' pages there are none to be evicted.
        let shown = show(server, &store, 2 * BUDGET_BYTES)?;
        let begin = Instant::now();
        for page in scattered(TOUCHES) {
            shown.read(page * PAGE_BYTES)?;
        }
        Ok(begin.elapsed())
    };
    let mut times = vec![Vec::new(); servers.len()];
    for _ in 0..runs.max(1) {
        for (server, times) in servers.iter().zip(&mut times) {
            times.push(touches(*server)?);
        }
    }
    Ok(times)
}
