//! Any bytes as the head of a qcow2 image.
#![no_main]

#[path = "../../../mover/endpoints/tests/support/qcow2_check.rs"]
mod qcow2_check;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // Half of the inputs get past the head's length.
    let mut image = qcow2_check::image(b"base.img", b"raw");
    if let Some((&mode, rest)) = input.split_first()
        && mode % 2 == 0
    {
        for change in rest.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % image.len();
            image[at] = change[2];
        }
        qcow2_check::check(&image);
    }
    qcow2_check::check(input);
});
