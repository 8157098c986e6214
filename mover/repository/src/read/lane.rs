//! One disk's lane in one worker. What it does is the [`Reader`]'s, which the worker's other disks share.

use std::cell::RefCell;
use std::rc::Rc;

use mover_engine::lane::LaneOperation;
use mover_engine::{Io, Lane};

use super::parts::Disk;
use super::reader::Reader;

/// A lane that reads.
pub(super) struct TreeLane {
    pub task: usize,
    pub disk: Rc<Disk>,
    pub reader: Rc<RefCell<Reader>>,
}

impl Lane for TreeLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        self.reader.borrow_mut().begin(operation, self.task, &self.disk, io);
    }

    fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>) {
        self.reader.borrow_mut().advance(aux, result, io);
    }
}
