//! `null:SIZE`: a source of zeros, and a sink that takes everything.

use mover_engine::lane::{Fault, LaneOperation, OperationKind};
use mover_engine::{Access, Alignment, Io, Lane, LaneSetup, Sink, Source};
use mover_model::{Extent, ExtentKind, Result};

/// The null endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Null {
    /// Bytes; `None` only as a sink without a bound.
    pub size: Option<u64>,
}

impl Source for Null {
    fn label(&self) -> String {
        label(self.size)
    }

    fn size(&self) -> Option<u64> {
        Some(self.size.unwrap_or(0))
    }

    fn access(&self) -> Access {
        Access::Direct
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        let size = self.size.unwrap_or(0);
        let whole = (size > 0).then(|| Ok(Extent::new(0, size, ExtentKind::Hole)));
        Ok(Box::new(whole.into_iter()))
    }

    fn lane(&self, _: Access, _: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(NullLane { capacity: u64::MAX }))
    }
}

impl Sink for Null {
    fn label(&self) -> String {
        label(self.size)
    }

    fn capacity(&self) -> Option<u64> {
        self.size
    }

    fn access(&self) -> Access {
        Access::Direct
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn reads_zero(&self) -> bool {
        true
    }

    fn lane(&self, _: Access, _: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(NullLane { capacity: self.size.unwrap_or(u64::MAX) }))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

fn label(size: Option<u64>) -> String {
    size.map_or_else(|| "null:".to_owned(), |size| format!("null:{size}"))
}

/// Operations end where they begin. Reads come only from a list that calls parts of the null disk data.
struct NullLane {
    /// What does not fit is refused as by a full device: the size of a stream is not known beforehand.
    capacity: u64,
}

impl Lane for NullLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        match operation.kind {
            OperationKind::Read => io.finish_with_zeros(&operation),
            OperationKind::Sink(_) if operation.offset + operation.length > self.capacity => {
                io.finish(&operation, Err(Fault { errno: libc::ENOSPC, offset: self.capacity }));
            }
            OperationKind::Sink(_) => io.finish(&operation, Ok(operation.length)),
        }
    }

    fn advance(&mut self, _: u32, _: i32, _: &mut Io<'_>) {}
}
