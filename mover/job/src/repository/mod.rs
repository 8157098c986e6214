//! The verbs that work on a repository. Each has its options, and a `run` that returns the `result` record or a
//! document; nothing is printed here.

pub mod access;
pub mod backup;
pub mod catalog;
pub mod common;
pub mod diff;
pub mod gc;
pub mod init;
pub mod key;
pub mod list;
pub mod prune;
pub mod restore;
pub mod show;
pub mod verify;
