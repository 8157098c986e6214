//! The engine: moves extents from a [`Source`] to a [`Sink`] through buffers that nobody copies.
//!
//! Where to look first:
//! - [`worker`] is the hot path, read top-down: take a request, read, transform, write, done;
//! - [`lane`] is the contract between a worker and an endpoint;
//! - [`ring`] is io_uring, and the synchronous backend with the same contract;
//! - [`queue`] and [`plan`] turn extents into the requests that workers steal from each other.
//!
//! This is the only crate that touches io_uring.

pub mod arena;
pub mod capability;
pub mod control;
pub mod lane;
pub mod pattern;
pub mod plan;
pub mod pool;
pub mod queue;
pub mod ring;
pub mod run;
pub mod settings;
pub mod slot;
pub mod stats;
pub mod sys;
pub mod transform;
pub mod worker;
pub mod xfs;

pub use arena::Scratch;
pub use control::{Control, Rate};
pub use lane::{Access, Alignment, Io, Lane, LaneSetup, Order, Sink, SinkOperation, Source};
pub use run::{Outcome, Report, Task, run};
pub use settings::{Backend, Settings};
pub use worker::{ReadErrors, Recorder, Segment, TaskOptions};
