//! Sizes, rates and durations as people write them, and back.

/// What is wrong with a size, rate or duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number followed by a known unit.
    #[error("`{}` is not a size: write a number and a unit, such as 4K, 1M or 2GiB", .0.escape_debug())]
    NotASize(String),
    /// The value does not fit 63 bits, the largest offset the kernel knows.
    #[error("`{}` is too large: the largest size is 8 EiB - 1", .0.escape_debug())]
    TooLarge(String),
    /// Not a number followed by ms, s, m or h.
    #[error("`{}` is not a duration: write a number and a unit, such as 250ms, 10s or 5m", .0.escape_debug())]
    NotADuration(String),
}

/// Bytes of a size such as `4K`, `1M`, `2GiB`, `1.5T`, `512`.
///
/// `K M G T P E` and `KiB …` are powers of 1024, `kB KB MB …` powers of 1000, as in GNU coreutils.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let not_a_size = || UnitError::NotASize(text.to_owned());
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let unit = unit.trim_start();
    let multiplier = unit_multiplier(unit).ok_or_else(not_a_size)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(not_a_size());
    }
    let too_large = || UnitError::TooLarge(text.to_owned());
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = whole.checked_mul(multiplier).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        if fraction.len() > 18 {
            return Err(not_a_size());
        }
        let scaled: u128 = fraction.parse().map_err(|_| not_a_size())?;
        let product = scaled * multiplier;
        let divisor = 10u128.pow(fraction.len() as u32);
        if !product.is_multiple_of(divisor) && multiplier == 1 {
            return Err(not_a_size());
        }
        bytes += product / divisor;
    }
    if bytes > i64::MAX as u128 {
        return Err(too_large());
    }
    Ok(bytes as u64)
}

fn unit_multiplier(unit: &str) -> Option<u128> {
    let lower = unit.to_ascii_lowercase();
    if lower.is_empty() || lower == "b" {
        return Some(1);
    }
    let power = "kmgtpe".find(lower.chars().next()?)? as u32 + 1;
    match &lower[1..] {
        "" | "i" | "ib" => Some(1024u128.pow(power)),
        "b" => Some(1000u128.pow(power)),
        _ => None,
    }
}

/// Bytes per second of a rate such as `200M`, `200M/s` or `1.5GiB/s`.
pub fn parse_rate(text: &str) -> Result<u64, UnitError> {
    parse_size(text.trim().strip_suffix("/s").unwrap_or(text))
}

/// A duration such as `250ms`, `10s`, `5m`, `2h`; a bare number counts seconds.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, UnitError> {
    let bad = || UnitError::NotADuration(text.to_owned());
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let value: f64 = number.parse().map_err(|_| bad())?;
    let scale = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    std::time::Duration::try_from_secs_f64(value * scale).map_err(|_| bad())
}

/// A size for people: `5.1 GiB`, `64 KiB`, `512 B`.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 || unit == 0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4kB", 4000),
            ("1M", 1 << 20),
            ("2GiB", 2 << 30),
            ("1.5G", 3 << 29),
            ("64T", 64 << 40),
            (" 8 MiB ", 8 << 20),
            ("7E", 7 << 60),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "1X", "1.5", "1.", ".5M", "1..5M", "0x10", "1 M B", "1e3", "NaN"] {
            assert!(matches!(parse_size(text), Err(UnitError::NotASize(_))), "{text}");
        }
        for text in ["8E", "99999999999999999999999999999999999999999", "9223372036854775808"] {
            assert!(matches!(parse_size(text), Err(UnitError::TooLarge(_))), "{text}");
        }
        assert_eq!(parse_size("9223372036854775807"), Ok(i64::MAX as u64));
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(format_size(0), "0 B");
        assert_eq!(format_size(1023), "1023 B");
        assert_eq!(format_size(65536), "64 KiB");
        assert_eq!(format_size(5_476_083_302), "5.1 GiB");
        assert_eq!(format_size(u64::MAX), "16 EiB");
    }

    #[test]
    fn rates_and_durations() {
        assert_eq!(parse_rate("20MB/s"), Ok(20_000_000));
        assert_eq!(parse_rate("1G"), Ok(1 << 30));
        assert_eq!(parse_duration("250ms"), Ok(std::time::Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(std::time::Duration::from_secs(120)));
        assert!(parse_duration("2 parsecs").is_err());
        assert!(parse_duration("-1s").is_err());
    }
}
