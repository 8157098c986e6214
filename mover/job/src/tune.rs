//! `mover tune`.
