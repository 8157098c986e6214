//! Support for mover's integration tests: faulty disks, scratch filesystems, disk layouts with a
//! reference, and a way to run the program under limits.
//!
//! Nothing here depends on a crate of mover: what a test compares against is computed by code that the
//! program does not share. Anything that cannot be set up on this machine comes back as a [`Skip`], and the
//! macros [`need!`] and [`skip!`] end the test with its reason in sight.

pub mod compare;
pub mod fault;
pub mod faulty;
pub mod layout;
pub mod outcome;
pub mod process;
pub mod rng;
pub mod sandbox;
pub mod scratch;
pub mod skip;
mod sys;
pub mod volume;

pub use skip::Skip;
