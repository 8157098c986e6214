//! Any bytes as an argument of the command line, and lists of extents as `diff` writes them.
#![no_main]

#[path = "../../../mover/model/tests/support/arguments_check.rs"]
mod arguments_check;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    arguments_check::check(input);
});
