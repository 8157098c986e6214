//! `mover bench`.
