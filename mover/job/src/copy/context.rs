//! What the steps of one copy share.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use mover_engine::{Control, Rate, Report, Settings};
use mover_model::event::BadExtent;

use super::CopyOptions;
use super::record::{BadExtents, join_bad};
use super::spool::Spool;
use crate::Emit;
use crate::progress::Ticker;

/// Everything that the steps of one copy share.
pub(super) struct Run<'a> {
    pub options: &'a CopyOptions,
    pub settings: Settings,
    pub rate: Option<Rate>,
    pub control: &'a Control,
    pub emit: Emit<'a>,
    pub ticker: &'a Ticker<'a>,
    /// Digests of what arrived, when someone will ask for them.
    pub spool: Option<Spool>,
    pub bad: BadExtents,
    /// Whether a stop left work undone.
    pub cut_short: AtomicBool,
    /// Latencies of the main pass.
    pub report: Mutex<Option<Report>>,
}

/// All bad extents so far, joined and in order.
pub(super) fn bad(run: &Run<'_>) -> Vec<BadExtent> {
    join_bad(run.bad.lock().unwrap_or_else(|p| p.into_inner()).clone())
}
