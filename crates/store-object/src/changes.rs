//! Changes to an object that its service does not have yet: a directory of this machine.
//!
//! ```text
//! state      text, one "name value" a line, replaced as a whole: which object, which version of it, what is being published
//! blocks.N   pairs of the first and the last+1 changed block, little endian, of generation N
//! data.N     the changed blocks, each where it is in the object; a file with holes
//! lock       of the process that has it open
//! ```
//! What is stored goes to the newest generation, of which nothing is promised: what no sync has published is given up when the
//! process ends. A sync makes that generation durable, lets the state name it, and begins another for what is stored meanwhile;
//! then it uploads, and then the state names none. What a state names is never changed, and never thrown away by itself: it is
//! published by whoever opens the directory next, or told as a conflict.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const BLOCK_BYTES: u64 = 4096;
const FORMAT: &str = "omnimap-changes 1";

/// What the changes are changes of, and whether they are being published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The object's URL.
    pub(crate) name: String,
    /// The version that was opened, as its server names it.
    pub(crate) version: String,
    pub(crate) version_bytes: u64,
    /// Bytes of that version that still count: it may have been cut, and made longer again.
    pub(crate) base_bytes: u64,
    /// The object's length now.
    pub(crate) length: u64,
    /// What is being published, if a sync has begun.
    pub(crate) syncing: Option<Syncing>,
}

/// A generation of changes on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Syncing {
    pub(crate) generation: u64,
    /// What the new version is marked with, last, and before it what those were marked with that may have become versions
    /// although they seemed to fail.
    pub(crate) marks: Vec<String>,
}

impl State {
    fn text(&self) -> String {
        let State { name, version, version_bytes, base_bytes, length, syncing } = self;
        let syncing = match syncing {
            Some(Syncing { generation, marks }) => format!("{generation} {}", marks.join(" ")),
            None => "no".to_owned(),
        };
        format!(
            "{FORMAT}\nname {name}\nversion {version}\nversion-bytes {version_bytes}\nbase-bytes {base_bytes}\n\
             length {length}\nsyncing {syncing}\n"
        )
    }

    fn parse(text: &str) -> Option<State> {
        let rest = text.strip_prefix(FORMAT)?;
        let get = |name: &str| {
            rest.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
        };
        Some(State {
            name: get("name")?,
            version: get("version")?,
            version_bytes: get("version-bytes")?.parse().ok()?,
            base_bytes: get("base-bytes")?.parse().ok()?,
            length: get("length")?.parse().ok()?,
            syncing: match get("syncing")?.split_once(' ') {
                Some((generation, marks)) => Some(Syncing {
                    generation: generation.parse().ok()?,
                    marks: marks.split_whitespace().map(str::to_owned).collect(),
                }),
                None => None,
            },
        })
    }
}

/// Ranges of blocks that do not touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Blocks(BTreeMap<u64, u64>);

impl Blocks {
    pub(crate) fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((first, last)) =
            self.0.range(..=end).next_back().map(|(f, l)| (*f, *l)).filter(|r| r.1 >= start)
        {
            self.0.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.0.insert(start, end);
    }

    /// Forgets what begins at `end` or behind it.
    pub(crate) fn cut(&mut self, end: u64) {
        drop(self.0.split_off(&end));
        if let Some(mut last) = self.0.last_entry() {
            *last.get_mut() = end.min(*last.get());
        }
    }

    /// The range's parts, and whether each is among the blocks.
    pub(crate) fn split(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let before = self.0.range(..=at).next_back();
        for (start, end) in before.into_iter().chain(self.0.range(at + 1..)) {
            if at >= range.end || *start >= range.end {
                break;
            }
            if *end <= at {
                continue;
            }
            if *start > at {
                parts.push((at..*start, false));
            }
            let (from, to) = (at.max(*start), range.end.min(*end));
            parts.push((from..to, true));
            at = to;
        }
        if at < range.end {
            parts.push((at..range.end, false));
        }
        parts
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(start, end)| [start.to_le_bytes(), end.to_le_bytes()]).flatten().collect()
    }

    fn from_bytes(bytes: &[u8]) -> Blocks {
        let numbers: Vec<u64> =
            bytes.chunks_exact(8).map(|n| u64::from_le_bytes(n.try_into().expect("eight bytes"))).collect();
        let mut blocks = Blocks::default();
        numbers.chunks_exact(2).for_each(|pair| blocks.add(pair[0]..pair[1]));
        blocks
    }
}

/// Changed blocks and a file that has them.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) generation: u64,
    pub(crate) blocks: Blocks,
    pub(crate) data: Arc<File>,
}

/// The directory, which one process at a time has open.
pub(crate) struct Changes {
    pub(crate) directory: PathBuf,
    _lock: File,
}

impl Changes {
    /// Opens the directory, which is made if it is not there; and what was being published when it was left.
    pub(crate) fn open(directory: &Path) -> io::Result<(Changes, Option<(State, Layer)>)> {
        fs::create_dir_all(directory)?;
        let lock = open(&directory.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::Error(error) => error,
            fs::TryLockError::WouldBlock => {
                let text = "another mapping of this object is being stored to; only one can be at a time";
                io::Error::new(io::ErrorKind::ResourceBusy, text)
            }
        })?;
        let changes = Changes { directory: directory.to_owned(), _lock: lock };
        let left = match Changes::look(directory)? {
            Some((state, blocks)) => match &state.syncing {
                Some(Syncing { generation, .. }) => {
                    let data = File::options().read(true).write(true).open(changes.data_path(*generation))?;
                    let layer = Layer { generation: *generation, blocks, data: Arc::new(data) };
                    Some((state, layer))
                }
                None => None,
            },
            None => None,
        };
        let kept = left.as_ref().map(|(_, layer)| layer.generation);
        changes.remove_those(|found| Some(found) != kept)?;
        Ok((changes, left))
    }

    /// What a directory holds, without a claim to it.
    pub(crate) fn look(directory: &Path) -> io::Result<Option<(State, Blocks)>> {
        let text = match fs::read_to_string(directory.join("state")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(state) = State::parse(&text) else {
            let text = format!(
                "{} is no list of changes that this version can read",
                directory.join("state").display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        };
        let blocks = match &state.syncing {
            Some(syncing) => Blocks::from_bytes(&fs::read(blocks_path(directory, syncing.generation))?),
            None => Blocks::default(),
        };
        Ok(Some((state, blocks)))
    }

    pub(crate) fn data_path(&self, generation: u64) -> PathBuf {
        data_path(&self.directory, generation)
    }

    /// An empty generation.
    pub(crate) fn begin(&self, generation: u64, length: u64) -> io::Result<Layer> {
        let data = open(&self.data_path(generation))?;
        data.set_len(0)?;
        data.set_len(length)?;
        Ok(Layer { generation, blocks: Blocks::default(), data: Arc::new(data) })
    }

    /// Makes a generation durable, and the state that names it; then no other is needed.
    pub(crate) fn begin_sync(&self, state: &State, layer: &Layer) -> io::Result<()> {
        layer.data.sync_all()?;
        replace(&self.directory, &blocks_path(&self.directory, layer.generation), &layer.blocks.to_bytes())?;
        replace(&self.directory, &self.directory.join("state"), state.text().as_bytes())
    }

    /// Published: what is older than `newest` is not needed any more.
    pub(crate) fn end_sync(&self, state: &State, newest: u64) -> io::Result<()> {
        replace(&self.directory, &self.directory.join("state"), state.text().as_bytes())?;
        self.remove_before(newest)
    }

    /// Gives up the generations before one.
    pub(crate) fn remove_before(&self, generation: u64) -> io::Result<()> {
        self.remove_those(|found| found < generation)
    }

    fn remove(&self, generation: u64) -> io::Result<()> {
        for path in [self.data_path(generation), blocks_path(&self.directory, generation)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn remove_those(&self, goes: impl Fn(u64) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let parts = name.to_str().and_then(|name| name.split_once('.'));
            let number =
                parts.filter(|(what, _)| ["data", "blocks"].contains(what)).map(|(_, number)| number);
            let generation = number.and_then(|number| number.parse::<u64>().ok());
            if let Some(generation) = generation.filter(|generation| goes(*generation)) {
                self.remove(generation)?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

pub(crate) fn data_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("data.{generation}"))
}

fn blocks_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("blocks.{generation}"))
}

/// A file that has the old bytes or the new ones, whatever happens.
fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join("new");
    let file = File::create(&new)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_merged_cut_and_split() {
        let mut blocks = Blocks::default();
        for range in [10..12, 20..30, 12..13, 5..5, 28..40, 0..1] {
            blocks.add(range);
        }
        assert_eq!(blocks.iter().collect::<Vec<_>>(), [0..1, 10..13, 20..40]);
        let parts = [(11..13, true), (13..20, false), (20..25, true)];
        assert_eq!(blocks.split(11..25), parts);
        assert_eq!(blocks.split(50..60), [(50..60, false)]);
        assert_eq!(blocks.split(2..4), [(2..4, false)]);
        assert_eq!(Blocks::from_bytes(&blocks.to_bytes()), blocks);
        blocks.add(9..21);
        assert_eq!(blocks.iter().collect::<Vec<_>>(), [0..1, 9..40]);
        blocks.cut(20);
        assert_eq!(blocks.iter().collect::<Vec<_>>(), [0..1, 9..20]);
        blocks.cut(5);
        assert_eq!(blocks.split(0..2), [(0..1, true), (1..2, false)]);
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let state = State {
            name: "s3://bucket/a b".to_owned(),
            version: "ETag \"x\"".to_owned(),
            version_bytes: 5,
            base_bytes: 3,
            length: 7,
            syncing: Some(Syncing { generation: 12, marks: vec!["a".to_owned(), "b".to_owned()] }),
        };
        assert_eq!(State::parse(&state.text()), Some(state.clone()));
        let open = State { syncing: None, ..state };
        assert_eq!(State::parse(&open.text()), Some(open));
        assert_eq!(State::parse("omnimap-changes 2\n"), None);
    }
}
