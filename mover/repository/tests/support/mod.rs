//! What several test files share. Each of them uses a part.
#![allow(dead_code, unused_imports)]

mod cutting;
mod memory;

pub use cutting::{Cut, CuttingSteps, Side};
pub use memory::MemoryStore;
