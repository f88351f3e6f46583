//! Sizes as people write them.

/// Reads `4096`, `64KiB`, `64K`, `1.5GiB`, `10MB`: binary units, unless it says `KB`, `MB`, … .
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (base, letter) = match unit.as_str() {
        "" | "b" => (1, ""),
        _ => match unit.strip_suffix("ib") {
            Some(letter) => (1024, letter),
            None => unit.strip_suffix('b').map_or((1024, unit.as_str()), |letter| (1000, letter)),
        },
    };
    let power = ["", "k", "m", "g", "t", "p", "e"].iter().position(|l| *l == letter);
    let invalid = || format!("{text:?} is no size: write 4096, 64KiB, 1.5GiB or 10MB");
    let factor = u64::pow(base, power.ok_or_else(invalid)? as u32);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text} is more than an address can reach"));
    }
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number * (factor as f64) < u64::MAX as f64 => {
            Ok((number * factor as f64) as u64)
        }
        _ => Err(invalid()),
    }
}

/// Writes a size so that a person takes it in: `64 MiB`, `1.5 GiB`, `17 B`.
pub(crate) fn show(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let scaled = bytes as f64 / 1024f64.powi(power as i32);
    let decimals = usize::from(scaled < 99.95 && scaled.fract() >= 0.05);
    format!("{scaled:.decimals$} {}", UNITS[power])
}

#[cfg(test)]
mod tests {
    use super::{parse, show};

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65536),
            ("64k", 65536),
            ("1.5GiB", 3 << 29),
            ("10MB", 10_000_000),
            ("2 TiB", 2 << 40),
            ("7b", 7),
            ("1E", 1 << 60),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1XB", "1.2.3M", "MiB", "99999999999E", "1e9"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_three_or_four_digits() {
        let shown = [0, 17, 1024, 1536, 64 << 20, (1 << 40) + (1 << 39), u64::MAX].map(show);
        assert_eq!(shown, ["0 B", "17 B", "1 KiB", "1.5 KiB", "64 MiB", "1.5 TiB", "16 EiB"]);
    }
}
