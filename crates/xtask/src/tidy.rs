//! `cargo xtask tidy`: the rules that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Which crates of the project a crate may use: the layers of ARCHITECTURE.md. Tests may use more.
const LAYERS: [(&str, &[&str]); 11] = [
    ("host", &[]),
    ("queue", &[]),
    ("store", &["queue"]),
    ("store-object", &["store"]),
    ("alloc", &["host"]),
    ("core", &["host", "store"]),
    ("testkit", &["host", "store"]),
    ("posix", &["core", "host", "store"]),
    ("omnimap", &["alloc", "core", "host", "posix", "store", "store-object"]),
    ("cli", &["omnimap"]),
    ("xtask", &["core", "host", "omnimap", "testkit"]),
];

/// The crates with unsafe code: the machine, and what hands out raw addresses because that is what it is for.
const UNSAFE_CRATES: [&str; 4] = ["host", "queue", "posix", "alloc"];

/// Lines of a file, and of a function. Longer ones stand below, and may only shrink.
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LONGER_FILES: [(&str, usize); 0] = [];
const LONGER_FUNCTIONS: [(&str, usize); 0] = [];

/// Words that say nothing, in the name of a type.
const TYPE_WORDS: [&str; 7] = ["Manager", "Region", "Pager", "Buffer", "Segment", "Context", "Util"];
/// Names that others gave: the data segment of brk(2).
const TYPE_NAMES: [&str; 1] = ["DataSegment"];

/// Left-overs.
const MARKERS: [&str; 4] = ["FIXME", "XXX", "HACK", "TODO"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let mut complaints = Vec::new();
    layers(root, &mut complaints)?;
    for file in rust_files(&root.join("crates"))? {
        // This file has the words in it.
        if !file.ends_with("xtask/src/tidy.rs") {
            check_file(root, &file, &mut complaints)?;
        }
    }
    unsafe_is_forbidden(root, &mut complaints)?;
    if complaints.is_empty() {
        println!("tidy");
        return Ok(());
    }
    bail!("{} things are untidy:\n{}", complaints.len(), complaints.join("\n"))
}

/// Reads the `[dependencies]` of each crate.
fn layers(root: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let mut crates: Vec<String> = Vec::new();
    for entry in fs::read_dir(root.join("crates"))? {
        crates.push(entry?.file_name().to_string_lossy().into_owned());
    }
    crates.sort();
    for name in crates {
        let Some((_, allowed)) = LAYERS.iter().find(|(n, _)| *n == name) else {
            complaints.push(format!("crates/{name}: no layer is written for it in xtask's tidy"));
            continue;
        };
        let manifest = root.join("crates").join(&name).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
        let section = text.split("\n[").find_map(|s| s.strip_prefix("dependencies]")).unwrap_or("");
        for line in section.lines() {
            let used = line.split(['.', ' ', '=']).next().unwrap_or("");
            let ours = if used == "omnimap" { Some("omnimap") } else { used.strip_prefix("omnimap-") };
            if let Some(ours) = ours.filter(|o| !allowed.contains(o)) {
                complaints.push(format!("crates/{name} uses {ours}: that is not below it"));
            }
        }
    }
    Ok(())
}

fn unsafe_is_forbidden(root: &Path, complaints: &mut Vec<String>) -> Result<()> {
    for (name, _) in LAYERS.iter().filter(|(name, _)| !UNSAFE_CRATES.contains(name)) {
        let source = root.join("crates").join(name).join("src");
        let entry = ["lib.rs", "main.rs"].map(|f| source.join(f)).into_iter().find(|f| f.exists());
        let entry = entry.with_context(|| format!("crates/{name} has no lib.rs and no main.rs"))?;
        if !fs::read_to_string(&entry)?.contains("#![forbid(unsafe_code)]") {
            complaints.push(format!("{}: lacks #![forbid(unsafe_code)]", entry.display()));
        }
    }
    Ok(())
}

fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn check_file(root: &Path, path: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
    let lines: Vec<&str> = text.lines().collect();
    let most = |list: &[(&str, usize)], key: &str, usual| {
        list.iter().find(|(k, _)| *k == key).map_or(usual, |(_, lines)| *lines)
    };
    let file_max = most(&LONGER_FILES, &name, FILE_LINES_MAX);
    if lines.len() > file_max {
        complaints.push(format!("{name}: {} lines, at most {file_max}: is it two things?", lines.len()));
    }
    if !lines.first().is_some_and(|l| l.starts_with("//!") || l.starts_with("#![cfg")) {
        complaints.push(format!("{name}: does not begin with what it is for (//!)"));
    }
    for (number, line) in (1..).zip(&lines) {
        if let Some(word) = type_word(line) {
            complaints.push(format!("{name}:{number}: {word} says nothing in a type's name"));
        }
        if let Some(marker) = MARKERS.iter().find(|m| line.contains(**m)) {
            complaints.push(format!("{name}:{number}: {marker} left behind"));
        }
        if line.trim_start().starts_with("pub use") && line.contains("::*") {
            complaints.push(format!("{name}:{number}: say what is re-exported"));
        }
    }
    for (function, length) in functions(&lines) {
        let function_max = most(&LONGER_FUNCTIONS, &format!("{name}:{function}"), FUNCTION_LINES_MAX);
        if length > function_max {
            complaints.push(format!("{name}: {function} has {length} lines, at most {function_max}"));
        }
    }
    Ok(())
}

/// The empty word in the name of the type that a line declares.
fn type_word(line: &str) -> Option<&'static str> {
    let mut words = line.split_whitespace().skip_while(|w| w.starts_with("pub"));
    let keyword = words.next()?;
    let name = words.next()?;
    let declares = matches!(keyword, "struct" | "enum" | "trait" | "type");
    let given = TYPE_NAMES.iter().any(|given| name.trim_end_matches([';', '{']) == *given);
    TYPE_WORDS.into_iter().find(|word| declares && !given && name.contains(word))
}

/// Names and lengths of the functions in formatted code: each ends at the brace below its `fn`.
fn functions<'a>(lines: &[&'a str]) -> Vec<(&'a str, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let is_function =
            ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "unsafe fn ", "extern \"C\" fn "]
                .iter()
                .any(|p| code.starts_with(p));
        if !is_function || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let indent = &line[..line.len() - code.len()];
        let end =
            lines[start..].iter().position(|l| l.strip_prefix(indent).is_some_and(|l| l.starts_with('}')));
        let name = code.split("fn ").nth(1).and_then(|rest| rest.split(['(', '<']).next()).unwrap_or(code);
        found.extend(end.map(|end| (name, end + 1)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{functions, type_word};

    #[test]
    fn empty_words_are_found_in_type_names_alone() {
        assert_eq!(type_word("pub struct PageManager {"), Some("Manager"));
        assert_eq!(type_word("pub(crate) enum Region {"), Some("Region"));
        assert_eq!(type_word("    let Context = 1;"), None);
        assert_eq!(type_word("struct Page;"), None);
        assert_eq!(type_word("pub struct DataSegment {"), None);
        assert_eq!(type_word("pub struct DataSegments {"), Some("Segment"));
    }

    #[test]
    fn functions_are_measured() {
        let code =
            ["    fn one() {", "        {", "        }", "    }", "fn two<T>(", ") {", "}", "fn three();"];
        assert_eq!(functions(&code), [("one", 4), ("two", 3)]);
    }
}
