//! `omnimap patch`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use omnimap::MapOptions;

use crate::size;

/// Change bytes of a file in place; they are durable when the command ends.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file; its length stays what it is.
    source: PathBuf,
    /// Where the first byte goes: 4096, 64KiB.
    #[arg(value_parser = size::parse)]
    offset: u64,
    /// The bytes: text, in which \xNN, \n, \r, \t, \0 and \\ are what they are in C.
    #[arg(allow_hyphen_values = true)]
    bytes: OsString,
    /// BYTES is pairs of hexadecimal digits, with or without spaces between.
    #[arg(long)]
    hex: bool,
    /// All of the bytes or none of them, whatever happens meanwhile.
    #[arg(long)]
    atomic: bool,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let text = self.bytes.as_bytes();
        let bytes = if self.hex { from_hex(text) } else { unescape(text) }?;
        let mut mapping = MapOptions::new().atomic(self.atomic).open_mut(&self.source)?;
        mapping.write_at(self.offset, &bytes)?;
        // Of an atomic mapping, this is all or nothing.
        mapping.sync()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn from_hex(text: &[u8]) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        bail!("{} hexadecimal digits: two make a byte", digits.len());
    }
    pairs.iter().map(|pair| hex_byte(pair)).collect()
}

fn hex_byte(pair: &[u8]) -> Result<u8> {
    let shown = String::from_utf8_lossy(pair);
    let digit = |at: usize| pair.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (Some(high), Some(low)) = (digit(0), digit(1)) else {
        bail!("{shown:?} are no two hexadecimal digits");
    };
    Ok((high << 4 | low) as u8)
}

fn unescape(text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (letter, after) = rest.split_first().context("a \\ at the end: write \\\\ for the character")?;
        rest = after;
        bytes.push(match letter {
            b'x' => {
                let pair = &rest[..rest.len().min(2)];
                rest = &rest[pair.len()..];
                hex_byte(pair).context("\\x takes two hexadecimal digits")?
            }
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            other => {
                bail!("\\{} is no escape: write \\xNN, \\n, \\r, \\t, \\0 or \\\\", other.escape_ascii())
            }
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{from_hex, unescape};

    #[test]
    fn escapes_are_bytes() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("abc", b"abc"),
            ("a\\x00\\xfFb", b"a\0\xFFb"),
            ("\\n\\r\\t\\0\\\\x41", b"\n\r\t\0\\x41"),
            ("é", "é".as_bytes()),
        ] {
            assert_eq!(unescape(text.as_bytes()).unwrap(), bytes, "{text}");
        }
        for wrong in ["\\", "\\q", "\\x", "\\x4", "\\xg0", "\\xé"] {
            unescape(wrong.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn hexadecimal_digits_come_in_pairs() {
        assert_eq!(from_hex(b"00 fF\t7a").unwrap(), b"\x00\xFF\x7A");
        assert_eq!(from_hex(b"").unwrap(), b"");
        for wrong in [&b"0"[..], b"0x", b"-1", b"+1", b"\xC3\xA9"] {
            from_hex(wrong).unwrap_err();
        }
    }
}
