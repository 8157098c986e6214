//! The use cases. This is the only crate that composes endpoints and engine; it returns values and emits
//! events, and prints nothing.
#![forbid(unsafe_code)]

pub mod bench;
pub mod copy;
pub mod doctor;
pub mod options;
pub mod preflight;
pub mod progress;
pub mod repository;
pub mod resolve;
pub mod tune;

use mover_model::event::Event;

/// Takes the events of a run. It must not block: what cannot keep up drops progress, never the run.
pub type Emit<'a> = &'a (dyn Fn(Event) + Sync);
