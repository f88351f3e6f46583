//! What is counted, and how it is told.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use omnimap::machine::page_bytes;
use serde_json::{Value, json};

use crate::size;

/// Of one file.
#[derive(Default)]
pub(super) struct Figures {
    /// Whether each page is in memory, in the end.
    pub(super) pages: Vec<bool>,
    pub(super) resident: u64,
    pub(super) resident_before: u64,
    /// The kernel says of all pages that they are, because it does not tell.
    pub(super) hidden: bool,
}

/// Of all files.
pub(super) struct Totals {
    /// What was done, if anything was.
    done: Option<&'static str>,
    files: u64,
    pub(super) directories: u64,
    pub(super) links_skipped: u64,
    pub(super) large_skipped: u64,
    pages: u64,
    resident: u64,
    resident_before: u64,
    /// What could not be had, and why.
    pub(super) failures: Vec<String>,
    listed: Vec<Value>,
}

impl Totals {
    pub(super) fn new(done: Option<&'static str>) -> Totals {
        Totals {
            done,
            files: 0,
            directories: 0,
            links_skipped: 0,
            large_skipped: 0,
            pages: 0,
            resident: 0,
            resident_before: 0,
            failures: Vec::new(),
            listed: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, path: &Path, figures: &Figures, list: bool) {
        self.files += 1;
        self.pages += figures.pages.len() as u64;
        self.resident += figures.resident;
        self.resident_before += figures.resident_before;
        if list {
            self.listed.push(json!({
                "file": path.display().to_string(),
                "pages": figures.pages.len(),
                "pages_resident": figures.resident,
                "pages_resident_before": figures.resident_before,
                "hidden": figures.hidden,
            }));
        }
    }

    /// Pages that something was done to.
    fn pages_done(&self) -> u64 {
        match self.done {
            Some("evicted") => self.resident_before.saturating_sub(self.resident),
            Some("locked") => self.pages,
            _ => self.resident.saturating_sub(self.resident_before),
        }
    }

    pub(super) fn print(&self, output: &mut impl Write, elapsed: Duration, as_json: bool) -> io::Result<()> {
        if as_json {
            return writeln!(output, "{:#}", self.json(elapsed));
        }
        let bytes = |pages: u64| size::show(pages * page_bytes());
        let mut line = |name: &str, value: String| writeln!(output, "{name:>12}  {value}");
        line("files", self.files.to_string())?;
        line("directories", self.directories.to_string())?;
        for (what, count) in [
            ("symbolic links, which -f follows", self.links_skipped),
            ("larger than the limit", self.large_skipped),
        ] {
            if count > 0 {
                line("skipped", format!("{count} {what}"))?;
            }
        }
        if let Some(done) = self.done {
            let pages = self.pages_done();
            line(done, format!("{pages} pages, {}", bytes(pages)))?;
        }
        let percent = 100.0 * self.resident as f64 / self.pages.max(1) as f64;
        let (part, all) = (bytes(self.resident), bytes(self.pages));
        line("resident", format!("{}/{} pages, {part} of {all}, {percent:.1} %", self.resident, self.pages))?;
        line("elapsed", format!("{:.5} s", elapsed.as_secs_f64()))
    }

    fn json(&self, elapsed: Duration) -> Value {
        let mut value = json!({
            "files": self.files,
            "directories": self.directories,
            "links_skipped": self.links_skipped,
            "large_skipped": self.large_skipped,
            "pages": self.pages,
            "pages_resident": self.resident,
            "pages_resident_before": self.resident_before,
            "page_bytes": page_bytes(),
            "bytes": self.pages * page_bytes(),
            "bytes_resident": self.resident * page_bytes(),
            "seconds": elapsed.as_secs_f64(),
            "failures": self.failures,
        });
        if let Some(done) = self.done {
            value[format!("pages_{done}")] = self.pages_done().into();
        }
        if !self.listed.is_empty() {
            value["listed"] = self.listed.clone().into();
        }
        value
    }
}
