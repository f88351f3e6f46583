//! `omnimap view`

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;

use super::Source;

/// Ask for indexes and print the byte at each; -1 ends.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mapping = self.source.map()?;
        let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
        let prompts = input.is_terminal();
        let mut line = Vec::new();
        loop {
            if prompts {
                write!(output, "index? ")?;
                output.flush()?;
            }
            line.clear();
            if input.read_until(b'\n', &mut line)? == 0 {
                return Ok(ExitCode::SUCCESS);
            }
            match String::from_utf8_lossy(&line).trim().parse::<i128>() {
                Ok(-1) => return Ok(ExitCode::SUCCESS),
                Ok(index) if index >= 0 && index < mapping.len() as i128 => {
                    let mut byte = [0];
                    mapping.read_at(index as u64, &mut byte)?;
                    let character = if byte[0].is_ascii_graphic() {
                        format!(" {:?}", byte[0] as char)
                    } else {
                        String::new()
                    };
                    writeln!(output, "{} (0x{:02x}){character}", byte[0], byte[0])?;
                }
                _ => writeln!(output, "invalid index")?,
            }
            output.flush()?;
        }
    }
}
