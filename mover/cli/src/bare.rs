//! Flags that may stand alone: `--hugepages`, `--numa` and `--progress` mean the plain "yes" then.
//!
//! clap would take whatever follows as their value, which may be an endpoint. So a value is given to them here,
//! before clap looks, unless what follows is one of theirs.

use std::ffi::{OsStr, OsString};

struct Bare {
    flag: &'static str,
    alone: &'static str,
    is_value: fn(&str) -> bool,
}

const FLAGS: [Bare; 3] = [
    Bare {
        flag: "--hugepages",
        alone: "--hugepages=on",
        is_value: |text| ["auto", "on", "required", "off"].contains(&text),
    },
    Bare {
        flag: "--numa",
        alone: "--numa=auto",
        is_value: |text| ["auto", "off"].contains(&text) || text.parse::<u32>().is_ok(),
    },
    Bare {
        flag: "--progress",
        alone: "--progress=always",
        is_value: |text| ["auto", "always", "never"].contains(&text),
    },
];

/// The command line with values for the flags that stand alone in it.
pub fn fill(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.peekable();
    let mut filled = Vec::new();
    while let Some(arg) = args.next() {
        if arg == OsStr::new("--") {
            filled.push(arg);
            filled.extend(args);
            break;
        }
        let bare = FLAGS.iter().find(|bare| arg == OsStr::new(bare.flag));
        let next = args.peek().and_then(|next| next.to_str());
        match bare {
            Some(bare) if !next.is_some_and(bare.is_value) => filled.push(OsString::from(bare.alone)),
            _ => filled.push(arg),
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(line: &str) -> String {
        let filled = fill(line.split(' ').map(OsString::from));
        filled.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_flag_alone_takes_no_endpoint() {
        assert_eq!(filled("copy --hugepages a b"), "copy --hugepages=on a b");
        assert_eq!(filled("copy a b --progress"), "copy a b --progress=always");
        assert_eq!(filled("copy --numa --hugepages off a b"), "copy --numa=auto --hugepages off a b");
        assert_eq!(filled("copy --numa 1 a b"), "copy --numa 1 a b");
        assert_eq!(filled("copy --numa=off a b"), "copy --numa=off a b");
        assert_eq!(filled("copy -- --numa b"), "copy -- --numa b");
    }
}
