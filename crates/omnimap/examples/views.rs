//! What it costs to map and unmap a view of an open object, beside the kernel's pair, and to open and drop an object:
//! `cargo xtask bench views`.
#![allow(clippy::print_stdout, reason = "a benchmark talks")]

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use omnimap::posix::{MapFlags, Object, Prot, Source, mmap, munmap};
use omnimap::store::MemoryStore;
use omnimap::{Cache, Format, MapOptions};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const OBJECTS: usize = 100;
/// Pages of an object, all of which a view shows.
const PAGES: usize = 16;
/// Pairs that one figure is the mean of.
const PAIRS: usize = 2_000;
/// Figures of which the median counts.
const RUNS: usize = 5;

fn main() -> Outcome<()> {
    let directory =
        tempfile::tempdir_in(std::env::args().nth(1).map_or(PathBuf::from("target"), PathBuf::from))?;
    let page = omnimap::machine::page_bytes() as usize;
    let paths: Vec<PathBuf> = (0..OBJECTS).map(|i| directory.path().join(i.to_string())).collect();
    for path in &paths {
        std::fs::write(path, vec![1; PAGES * page])?;
    }
    let files = paths.iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
    let cache = Cache::new(64 << 20)?;
    let open = |path: &PathBuf| MapOptions::new().cache(&cache).open_object(path);
    let objects = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let bytes = PAGES * page;
    for live in [1, 1_000, 30_000] {
        let paged = |flags| Kind::Paged(&objects, flags);
        let kinds = [Kind::Kernel(&files), paged(MapFlags::SHARED), paged(MapFlags::PRIVATE)];
        let mut figures = [const { Vec::new() }; 3];
        // In turn, so that a machine that is slow for a while is slow for all.
        for _ in 0..RUNS {
            for (kind, figures) in kinds.iter().zip(&mut figures) {
                figures.push(measure(*kind, bytes, live)?);
            }
        }
        let [kernel, read, private] = figures.map(median);
        println!(
            "views, {live:>6} live: kernel {kernel:.2} µs a pair, paged {read:.2} µs ({:.1} times), private {private:.2} µs \
             ({:.1} times)",
            read / kernel,
            private / kernel
        );
    }
    drop(objects);
    let each = |mut open: Box<dyn FnMut(usize) -> Outcome<Arc<Object>> + '_>| {
        let run = |_| {
            let begin = Instant::now();
            for i in 0..PAIRS {
                drop(open(i)?);
            }
            Ok(begin.elapsed().as_secs_f64() * 1e6 / PAIRS as f64)
        };
        Outcome::Ok(median((0..RUNS).map(run).collect::<Outcome<_>>()?))
    };
    let store = Arc::new(MemoryStore::new("memory", vec![1; bytes]));
    let over_a_store = each(Box::new(|_| Ok(MapOptions::new().cache(&cache).object(store.clone())?)))?;
    let known = |path| MapOptions::new().cache(&cache).format(Format::Plain).open_object(path);
    let of_known_format = each(Box::new(|i| Ok(known(&paths[i % OBJECTS])?)))?;
    let by_path = each(Box::new(|i| Ok(open(&paths[i % OBJECTS])?)))?;
    println!(
        "objects, opened and dropped: over a store {over_a_store:.1} µs, a file of known format {of_known_format:.1} µs, a file \
         whose first page is read to know it {by_path:.1} µs"
    );
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Kernel(&'a [File]),
    Paged(&'a [Arc<Object>], MapFlags),
}

impl Kind<'_> {
    fn map(self, i: usize, bytes: usize) -> Outcome<*mut c_void> {
        let null = std::ptr::null_mut();
        Ok(match self {
            Kind::Kernel(files) => {
                let fd = files[i % OBJECTS].as_raw_fd();
                // SAFETY: a new mapping at a place of the kernel's choice.
                let made = unsafe { libc::mmap(null, bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
                if made == libc::MAP_FAILED {
                    return Err(std::io::Error::last_os_error().into());
                }
                made
            }
            Kind::Paged(objects, flags) => {
                // SAFETY: as above.
                unsafe { mmap(null, bytes, Prot::READ, flags, Source::Object(&objects[i % OBJECTS]), 0) }?
            }
        })
    }

    fn unmap(self, start: *mut c_void, bytes: usize) -> Outcome<()> {
        match self {
            Kind::Kernel(_) => {
                // SAFETY: made by `map`, and nobody uses it.
                let done = unsafe { libc::munmap(start, bytes) };
                if done != 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
            }
            // SAFETY: as above.
            Kind::Paged(..) => Ok(unsafe { munmap(start, bytes) }?),
        }
    }
}

/// Microseconds of a pair, while others are mapped.
fn measure(kind: Kind<'_>, bytes: usize, live: usize) -> Outcome<f64> {
    let others = (1..live).map(|i| kind.map(i, bytes)).collect::<Outcome<Vec<_>>>()?;
    let begin = Instant::now();
    for i in 0..PAIRS {
        let start = kind.map(i, bytes)?;
        kind.unmap(start, bytes)?;
    }
    let figure = begin.elapsed().as_secs_f64() * 1e6 / PAIRS as f64;
    others.into_iter().try_for_each(|start| kind.unmap(start, bytes))?;
    Ok(figure)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
