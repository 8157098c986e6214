//! Packs' header, index and footer, with MACs that fit.
#![no_main]

#[path = "../../../mover/repository/tests/format_support/mod.rs"]
mod format_support;
#[path = "../../../mover/repository/tests/parsers/mod.rs"]
mod parsers;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    parsers::pack(input);
});
