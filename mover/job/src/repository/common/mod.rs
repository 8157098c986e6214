//! Disks that several machines have in common: known again by their identity, stored once, referenced by all, and
//! not overwritten under others.
//!
//! For a backup: [`arrange`] finds backing images, [`plan()`] tells for each disk whether it has to be read, [`settle`] what
//! the manifest says of one that was. For a restore: [`decide()`].

mod arrange;
mod decide;
mod identity;
mod plan;

use mover_model::Error;
use mover_model::Name;
use mover_model::manifest::{Common, Disk, FileIdentity, Pointer};

pub use arrange::{Arranged, arrange};
pub use decide::decide;
pub use plan::{plan, settle};

/// What is to be done with a disk of a backup.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // one for each disk of a run
pub enum CommonPlan {
    /// It is a disk like others.
    NotCommon,
    /// It is common, and not known, or not known to be as it was: it is read, and then given to [`settle`].
    Read(Reading),
    /// It is known, and as it was: neither read nor written.
    Reference {
        /// For the new manifest: [`mover_model::manifest::Method::Common`], nothing read, nothing stored.
        disk: Disk,
        /// The machine whose restore point has it; it may be this one.
        known_by: Name,
        /// By what it was known; for `reason` of the disk's result.
        reason: String,
    },
}

/// A common disk that is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// `common=ID`, where one was given; else [`settle`] makes one of the content.
    pub id: Option<String>,
    /// Where it lies: an absolute path, or its locator.
    pub location: String,
    /// What names it.
    pub pointer: Option<Pointer>,
    /// What it was before the read; absent for what is no local file.
    pub before: Option<FileIdentity>,
    /// Whether `before` can be trusted: a change right after it was taken would have shown.
    pub trusted: bool,
    /// Why it is read although its id is known; for `reason` of the disk's result.
    pub reason: Option<String>,
}

/// What is known of a common disk once it has been read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// For the manifest; `None`: it does not count as a common disk, because it was written meanwhile, as an event said.
    pub common: Option<Common>,
    /// For the manifest's `identity`: absent where it does not tell the next time that the disk is the same.
    pub identity: Option<FileIdentity>,
    /// Another machine that has this content as a common disk already.
    pub known_by: Option<Name>,
}

/// What becomes of a disk in a restore.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It is written to its target.
    Restore {
        /// For a `warning` event: other machines have it too.
        warning: Option<String>,
    },
    /// It is left as it is.
    Keep {
        /// For the disk's result.
        reason: String,
    },
    /// What names it was changed after the backup: it is left as it is, and the run ends with exit code 8.
    Changed {
        /// What the pointer was and what it came to.
        old: String,
        /// What it is and comes to now.
        new: String,
        /// `CommonChanged`, naming both.
        error: Error,
    },
}
