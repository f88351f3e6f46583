//! `omnimap pack`

use std::fs::{File, Permissions};
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use omnimap::store::{PackOptions, Packed, journal, pack};
use omnimap::{Advice, Format, MapOptions, Mapping, as_url};

use crate::{progress, size};

/// Compress a file so that any part of it can be mapped (seekable zstd; `zstd -d` unpacks it).
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file to pack, or the URL of an object; - for standard input.
    input: PathBuf,
    /// The file to write; - for standard output.
    output: PathBuf,
    /// Bytes that are unpacked at a time: smaller for random reads, larger for size.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "256KiB")]
    chunk: u64,
    /// Compression level, -7 to 22.
    #[arg(long, short, default_value_t = 3, allow_negative_numbers = true)]
    level: i32,
    /// Threads that compress; as many as the machine runs at once, unless it is given.
    #[arg(long, short = 'T')]
    threads: Option<NonZeroUsize>,
    /// Overwrite the output if it exists.
    #[arg(long, short)]
    force: bool,
}

/// A mapping as a file that is read from its beginning.
struct Reader {
    mapping: Mapping,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min((self.mapping.len() as u64 - self.at) as usize);
        self.mapping.read_at(self.at, &mut into[..count]).map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let defaults = PackOptions::default();
        let Some(chunk_bytes) = usize::try_from(self.chunk).ok().and_then(NonZeroUsize::new) else {
            bail!("a chunk has at least 1 byte");
        };
        let options =
            PackOptions { chunk_bytes, level: self.level, threads: self.threads.unwrap_or(defaults.threads) };
        let (input, length): (Box<dyn Read>, _) = if is_dash(&self.input) {
            (Box::new(io::stdin().lock()), None)
        } else if as_url(&self.input).is_some() {
            let mapping =
                MapOptions::new().advice(Advice::Sequential).format(Format::Plain).open(&self.input)?;
            let length = mapping.len() as u64;
            (Box::new(Reader { mapping, at: 0 }), Some(length))
        } else {
            journal::refuse_half_written(&self.input)?;
            let file = File::open(&self.input).with_context(|| self.input.display().to_string())?;
            let length = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
            (Box::new(BufReader::with_capacity(1 << 20, file)), length)
        };
        let bar = progress::bytes("packing", length);
        let mut input = Named { name: self.input.display().to_string(), of: input };
        let told = |done| bar.set_position(done);
        let packed = if is_dash(&self.output) || self.output == Path::new("/dev/stdout") {
            if io::stdout().is_terminal() && !self.force {
                bail!("packed bytes are nothing for a terminal; redirect them, or --force");
            }
            pack(&mut input, named("standard output", io::stdout().lock()), &options, told)?
        } else {
            self.pack_to_file(&mut input, &options, told)?
        };
        bar.finish_and_clear();
        let part = packed.packed_bytes as f64 / packed.bytes.max(1) as f64;
        let (from, to) = (size::show(packed.bytes), size::show(packed.packed_bytes));
        // The file is there; with standard error closed there is nobody to tell.
        let _ = writeln!(
            io::stderr(),
            "{from} packed into {to} ({:.1} %), {} chunks",
            100.0 * part,
            packed.frames
        );
        Ok(ExitCode::SUCCESS)
    }

    /// Writes beside the output and renames, so that a failure leaves neither half a file nor the loss of a whole one.
    fn pack_to_file(
        &self,
        input: &mut impl Read,
        options: &PackOptions,
        told: impl FnMut(u64),
    ) -> Result<Packed> {
        let output = &self.output;
        let name = || output.display().to_string();
        if output.symlink_metadata().is_ok() && !self.force && !is_special(output) {
            bail!("{}: exists already; --force overwrites it", name());
        }
        if output.is_symlink() && !output.exists() {
            bail!("{}: is a link that leads nowhere", name());
        }
        // Through links, to replace what they point at and not them.
        let output = if output.exists() { output.canonicalize().with_context(name)? } else { output.clone() };
        if is_special(&output) {
            let kind = output.metadata().with_context(name)?.file_type();
            if kind.is_dir() || kind.is_block_device() {
                bail!("{}: is no place for a packed file; name a file", name());
            }
            let file = File::options().write(true).open(&output).with_context(name)?;
            return Ok(pack(input, named(&name(), file), options, told)?);
        }
        journal::refuse_half_written(&output)?;
        let directory = output.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // What was private stays so; else as any new file, of which the umask takes its part.
        let like = [&output, &self.input].into_iter().find_map(|path| path.metadata().ok());
        let mode = like.filter(std::fs::Metadata::is_file).map_or(0o666, |m| m.permissions().mode() & 0o666);
        let temporary = tempfile::Builder::new()
            .prefix(".omnimap-pack")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory)
            .with_context(name)?;
        let packed = pack(input, named(&name(), temporary.as_file()), options, told)?;
        temporary.as_file().sync_all().with_context(name)?;
        let persisted = if self.force {
            temporary.persist(&output).map_err(|e| e.error)
        } else {
            temporary.persist_noclobber(&output).map_err(|e| e.error)
        };
        persisted.with_context(name)?;
        Ok(packed)
    }
}

/// Exists, and is no regular file.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| !m.is_file())
}

/// Says whose error it is.
struct Named<T> {
    name: String,
    of: T,
}

fn named<W: Write>(name: &str, of: W) -> BufWriter<Named<W>> {
    BufWriter::new(Named { name: name.to_owned(), of })
}

impl<T> Named<T> {
    fn named(&self, error: io::Error) -> io::Error {
        match error.kind() {
            // These mean something to whoever gets them.
            io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe => error,
            kind => io::Error::new(kind, format!("{}: {error}", self.name)),
        }
    }
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.of.read(into).map_err(|e| self.named(e))
    }
}

impl<W: Write> Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.of.write(bytes).map_err(|e| self.named(e))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.of.flush().map_err(|e| self.named(e))
    }
}

fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}
