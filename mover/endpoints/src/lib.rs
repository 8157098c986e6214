//! Endpoints: where data comes from and goes to. [`open_source`] and [`open_target`] are the one door from
//! a locator to an open endpoint; they probe, choose, refuse what would destroy something, and say so.
#![forbid(unsafe_code)]

mod door;
mod extents;
mod facts;
mod file;
mod guard;
mod null;
mod qcow2;
mod signature;
mod stream;

pub use door::{
    Direct, Medium, OpenOptions, OpenSource, OpenTarget, TargetOptions, open_source, open_target,
};
pub use facts::{DeviceFacts, device_facts, device_of_path};
pub use file::{FileSink, FileSource, Identity};
pub use guard::{has_writer, refuse_shared};
pub use null::Null;
pub use qcow2::{Backing, Qcow2Header};
pub use signature::find_signature;
pub use stream::{StreamSink, StreamSource};
