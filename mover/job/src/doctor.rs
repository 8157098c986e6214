//! `mover doctor`.
