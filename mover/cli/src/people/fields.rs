//! Pages of names and values.

/// A page that is being written: headings, and below them indented lines.
#[derive(Default)]
pub struct Fields(String);

impl Fields {
    /// A heading.
    pub fn head(&mut self, text: &str) {
        self.0.push_str(&super::one_line(text));
        self.0.push('\n');
    }

    /// A name and its value.
    pub fn line(&mut self, name: &str, value: impl AsRef<str>) {
        self.0.push_str(&format!("  {name:<11} {}\n", super::one_line(value.as_ref())));
    }

    /// A name and its value, where there is one.
    pub fn maybe(&mut self, name: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.line(name, value);
        }
    }

    /// The page.
    pub fn text(self) -> String {
        self.0
    }
}

/// A time of RFC 3339 without its fraction of a second.
pub fn short_time(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, rest)) => {
            format!("{seconds}{}", rest.trim_start_matches(|digit: char| digit.is_ascii_digit()))
        }
        None => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut_to_seconds() {
        assert_eq!(short_time("2026-11-20T03:00:00.123456Z"), "2026-11-20T03:00:00Z");
        assert_eq!(short_time("2026-11-20T03:00:00Z"), "2026-11-20T03:00:00Z");
        assert_eq!(short_time("2026-11-20T03:00:00.5+01:00"), "2026-11-20T03:00:00+01:00");
    }

    #[test]
    fn values_from_outside_stay_on_their_line() {
        let mut page = Fields::default();
        page.head("vm1@x");
        page.line("label", "a=\x1b[2J\nb");
        page.maybe("uuid", None);
        assert_eq!(page.text(), "vm1@x\n  label       a=\\u{1b}[2J\\nb\n");
    }
}
