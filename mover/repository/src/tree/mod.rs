//! A disk's content as a tree of chunk ids under one root.
//!
//! Equal content is an equal root, unchanged parts of two disks are shared nodes, and the difference of two costs what
//! differs. `Nodes` reads them, with a bounded cache.

mod build;
mod diff;
mod nodes;
mod walk;

pub use build::{Base, IdFile, NodeSink, build};
pub use diff::diff;
pub use nodes::Nodes;
pub use walk::{DataExtents, Leaves};
