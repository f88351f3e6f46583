//! Where the time of a read goes that somebody waits for: one run of each contender, traced by the kernel (tracefs).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tempfile::TempDir;

use super::contender::Contender;
use super::run::Bench;
use super::task::Task;

const EVENTS: [&str; 6] = [
    "exceptions/page_fault_user",
    "block/block_rq_issue",
    "block/block_rq_complete",
    "sched/sched_waking",
    "sched/sched_switch",
    "raw_syscalls/sys_enter",
];
/// Accesses of a traced run: so many that its events fit into the kernel's memory for them.
const OPERATIONS: u64 = 4_000;
const MEMORY_KIB: u64 = 8 << 10;
/// Looking for the end of a read, and for faults: as often as there is time for. (x86-64: sched_yield, io_getevents, read.)
#[cfg(target_arch = "x86_64")]
const LOOKING: &str = "id != 24 && id != 208 && id != 0";

/// What one access takes, step by step: medians, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct TimeLine {
    /// From the fault, or from the bytes of the access before where there are none, until the disk is asked.
    pub(super) until_asked: f64,
    pub(super) disk: f64,
    /// From the disk's answer until the thread that waits is told, if it sleeps.
    pub(super) until_told: Option<f64>,
    /// From then until it runs.
    pub(super) waking: Option<f64>,
    /// Until it needs the next page.
    pub(super) rest: f64,
    pub(super) whole: f64,
    /// System calls an access, but for those that look for something.
    pub(super) calls: f64,
}

/// The time line of one contender.
#[derive(Serialize)]
pub(super) struct Traced {
    pub(super) contender: Contender,
    #[serde(flatten)]
    pub(super) line: TimeLine,
}

/// Traces a run of each; says so in a note where that cannot be.
pub(super) fn trace(bench: &mut Bench, tasks: Vec<Task>) -> Vec<Traced> {
    let mut lines = Vec::new();
    for task in tasks {
        let contender = task.contender;
        if bench.able(&[contender]).is_empty() {
            continue;
        }
        let tracing = match Tracing::begin() {
            Ok(tracing) => tracing,
            Err(error) => {
                bench.note(format!("no time lines, which need root, tracefs and x86-64: {error:#}"));
                break;
            }
        };
        match traced(bench, &tracing, task) {
            Ok(Some(line)) => lines.push(Traced { contender, line }),
            Ok(None) => bench.note(format!("no time line of {}: no reads seen", contender.name())),
            Err(error) => bench.failed(&format!("the time line of {}", contender.name()), &error),
        }
    }
    lines
}

fn traced(bench: &Bench, tracing: &Tracing, task: Task) -> Result<Option<TimeLine>> {
    let by_faults = task.contender != Contender::Pool;
    bench.once(&Task { operations: task.operations.min(OPERATIONS), latencies: false, ..task })?;
    Ok(time_line(&tracing.events()?, by_faults))
}

/// Where the kernel shows its tracing.
enum Tracefs {
    Found(&'static Path),
    /// For us alone.
    Mounted(TempDir),
}

impl Tracefs {
    fn open() -> Result<Tracefs> {
        const USUAL: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
        if let Some(found) = USUAL.into_iter().map(Path::new).find(|path| path.join("instances").is_dir()) {
            return Ok(Tracefs::Found(found));
        }
        let place = tempfile::tempdir()?;
        let mut mount = Command::new("mount");
        let output =
            mount.args(["-t", "tracefs", "tracefs"]).arg(place.path()).output().context("mount(8)")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Tracefs::Mounted(place))
    }

    fn path(&self) -> &Path {
        match self {
            Tracefs::Found(path) => path,
            Tracefs::Mounted(place) => place.path(),
        }
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if let Tracefs::Mounted(place) = self {
            let unmounted = Command::new("umount").arg(place.path()).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("tracefs is left at {}", place.path().display());
            }
        }
    }
}

/// An instance of the kernel's tracing, which disturbs no other; removed when this is dropped.
struct Tracing {
    instance: PathBuf,
    _tracefs: Tracefs,
}

impl Tracing {
    #[cfg(target_arch = "x86_64")]
    fn begin() -> Result<Tracing> {
        let tracefs = Tracefs::open().context("mounting tracefs")?;
        let instance = tracefs.path().join(format!("instances/omnimap-{}", std::process::id()));
        fs::create_dir(&instance).context("making an instance of the kernel's tracing")?;
        let tracing = Tracing { instance, _tracefs: tracefs };
        tracing.set("trace_clock", "mono")?;
        tracing.set("buffer_size_kb", &MEMORY_KIB.to_string())?;
        tracing.set("events/raw_syscalls/sys_enter/filter", LOOKING)?;
        for event in EVENTS {
            tracing.set(&format!("events/{event}/enable"), "1")?;
        }
        Ok(tracing)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn begin() -> Result<Tracing> {
        anyhow::bail!("events of page faults have other names on this processor")
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        fs::write(self.instance.join(name), value).with_context(|| format!("writing to {name}"))
    }

    fn events(&self) -> Result<Vec<Event>> {
        self.set("tracing_on", "0")?;
        let text = fs::read_to_string(self.instance.join("trace")).context("reading the trace")?;
        Ok(events(&text))
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.set("events/enable", "0");
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("{} is left behind: {error}", self.instance.display());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Event {
    /// In microseconds.
    at: f64,
    cpu: u32,
    thread: u32,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Fault,
    Asked,
    Came,
    Told(u32),
    Runs(u32),
    Call,
}

/// Those that all processors still remember.
fn events(text: &str) -> Vec<Event> {
    let events: Vec<Event> = text.lines().filter_map(event).collect();
    let mut first: BTreeMap<u32, f64> = BTreeMap::new();
    for event in &events {
        first.entry(event.cpu).or_insert(event.at);
    }
    let begin = first.into_values().fold(0.0, f64::max);
    events.into_iter().filter(|event| event.at >= begin).collect()
}

/// `            name-4548    [000] d..2. 15367.260724: sched_switch: prev_comm=…`
fn event(line: &str) -> Option<Event> {
    let (task, rest) = line.split_once(" [")?;
    let (cpu, rest) = rest.split_once("] ")?;
    // The time is set to the right: soon after the machine's start there is more than one space before it.
    let mut words = rest.split_whitespace();
    let (_flags, at, name) = (words.next()?, words.next()?, words.next()?);
    let number =
        |key: &str| -> Option<u32> { words.clone().find_map(|word| word.strip_prefix(key))?.parse().ok() };
    let what = match name {
        "page_fault_user:" => What::Fault,
        "block_rq_issue:" => What::Asked,
        "block_rq_complete:" => What::Came,
        "sched_waking:" => What::Told(number("pid=")?),
        "sched_switch:" => What::Runs(number("next_pid=")?),
        "sys_enter:" => What::Call,
        _ => return None,
    };
    let at = at.trim_end_matches(':').parse::<f64>().ok()? * 1e6;
    Some(Event {
        at,
        cpu: cpu.parse().ok()?,
        thread: task.trim_end().rsplit_once('-')?.1.parse().ok()?,
        what,
    })
}

/// Of the thread that faults most, or asks the disk most where reads are no faults.
fn time_line(events: &[Event], by_faults: bool) -> Option<TimeLine> {
    let busiest = |what: What| {
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        for event in events.iter().filter(|event| event.what == what) {
            *counts.entry(event.thread).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(thread, _)| thread)
    };
    let is_next = if by_faults { What::Fault } else { What::Asked };
    let reader = busiest(is_next)?;
    let mut accesses: Vec<Access> = Vec::new();
    let mut access = Access::default();
    for event in events {
        let at = Some(event.at);
        match event.what {
            What::Fault if event.thread == reader && access.asked.is_none() => access.begin = at,
            What::Asked if access.asked.is_none() && access.begin.is_some() => access.asked = at,
            What::Came if access.asked.is_some() && access.came.is_none() => access.came = at,
            What::Told(thread) if thread == reader && access.came.is_some() && access.told.is_none() => {
                access.told = at;
            }
            What::Runs(thread) if thread == reader && access.told.is_some() && access.runs.is_none() => {
                access.runs = at;
            }
            _ => {}
        }
        // Without faults, an access begins where the one before has its bytes.
        if event.thread == reader && event.what == is_next && access.came.is_some() {
            let begin = if by_faults { at } else { access.came };
            access.end = begin;
            accesses.push(std::mem::take(&mut access));
            access.begin = begin;
            access.asked = at.filter(|_| !by_faults);
        } else if !by_faults && access.begin.is_none() && event.what == What::Asked {
            (access.begin, access.asked) = (at, at);
        }
    }
    let calls = events.iter().filter(|event| event.what == What::Call).count();
    let asked = events.iter().filter(|event| event.what == What::Asked).count();
    Some(TimeLine {
        until_asked: median(&accesses, |a| Some(a.asked? - a.begin?))?,
        disk: median(&accesses, |a| Some(a.came? - a.asked?))?,
        until_told: median(&accesses, |a| Some(a.told? - a.came?)),
        waking: median(&accesses, |a| Some(a.runs? - a.told?)),
        rest: median(&accesses, |a| Some(a.end? - a.runs.or(a.came)?))?,
        whole: median(&accesses, |a| Some(a.end? - a.begin?))?,
        calls: calls as f64 / asked as f64,
    })
}

/// The moments of one access, in microseconds.
#[derive(Default)]
struct Access {
    begin: Option<f64>,
    asked: Option<f64>,
    came: Option<f64>,
    told: Option<f64>,
    runs: Option<f64>,
    end: Option<f64>,
}

/// Of those that have it, if most do.
fn median(accesses: &[Access], of: impl Fn(&Access) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = accesses.iter().filter_map(of).collect();
    values.sort_by(f64::total_cmp);
    (values.len() * 2 > accesses.len()).then(|| values[values.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_trace_are_understood() {
        let line =
            "  omnimap-fault-4536    [001] d..4. 15367.260779: sched_waking: comm=x2 pid=4548 prio=120";
        let told = event(line).expect("an event");
        assert_eq!((told.cpu, told.thread, told.what), (1, 4536, What::Told(4548)));
        assert!((told.at - 15_367_260_779.0).abs() < 0.5);
        let line = "<idle>-0  [000] d..2.     1.500000: sched_switch: prev_comm=swapper/0 prev_pid=0 ==> next_comm=x next_pid=77";
        assert_eq!(event(line).map(|event| event.what), Some(What::Runs(77)));
        assert_eq!(event("# tracer: nop"), None);
        assert_eq!(event("CPU:1 [LOST 3 EVENTS]"), None);
    }

    #[test]
    fn what_one_processor_has_forgotten_is_left_out() {
        let line =
            |cpu: u32, at: u32| format!("x-1 [00{cpu}] d..2. {at}.000000: page_fault_user: address=0x0");
        let trace = [line(0, 1), line(0, 2), line(1, 3), line(0, 4)].join("\n");
        assert_eq!(events(&trace).iter().map(|event| event.at).collect::<Vec<_>>(), [3e6, 4e6]);
    }

    /// A fault every 100 µs by thread 7, which sleeps; thread 8 serves it.
    #[test]
    fn the_steps_of_an_access_are_told_apart() {
        let steps = [
            (-3.0, 7, What::Fault),
            (0.0, 7, What::Fault),
            (1.0, 7, What::Call),
            (10.0, 8, What::Asked),
            (50.0, 0, What::Came),
            (55.0, 8, What::Told(7)),
            (80.0, 0, What::Runs(7)),
        ];
        // The first of its faults finds the page in memory, and asks for nothing.
        let of = |access: u64| {
            steps.map(|(at, thread, what)| Event { at: at + access as f64 * 100.0, cpu: 0, thread, what })
        };
        let events: Vec<Event> = (0..OPERATIONS).flat_map(of).collect();
        let expected = TimeLine {
            until_asked: 10.0,
            disk: 40.0,
            until_told: Some(5.0),
            waking: Some(25.0),
            rest: 17.0,
            whole: 97.0,
            calls: 1.0,
        };
        assert_eq!(time_line(&events, true), Some(expected));
    }

    #[test]
    fn without_faults_an_access_begins_when_the_one_before_has_its_bytes() {
        let of = |access: u64| {
            [(10.0, What::Asked), (50.0, What::Came)].map(|(at, what)| Event {
                at: at + access as f64 * 50.0,
                cpu: 0,
                thread: 7,
                what,
            })
        };
        let events: Vec<Event> = (0..OPERATIONS).flat_map(of).collect();
        let line = time_line(&events, false).expect("accesses");
        assert_eq!((line.until_asked, line.disk, line.rest, line.whole), (10.0, 40.0, 0.0, 50.0));
    }
}
