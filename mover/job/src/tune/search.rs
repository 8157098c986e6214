//! The search for the best flags: coarse over the whole space, finer around the best, and then those that
//! are left against each other in turn, so that noise hits all of them alike.

use mover_model::Result;

/// One combination of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Candidate {
    /// Worker threads.
    pub workers: usize,
    /// Bytes of one request.
    pub block_size: u32,
    /// Requests in flight for each worker.
    pub queue_depth: u16,
}

impl Candidate {
    /// Buffer memory of all workers in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.workers as u64 * u64::from(self.block_size) * u64::from(self.queue_depth)
    }
}

/// What may be tried.
#[derive(Debug, Clone)]
pub struct Space {
    /// Least and most bytes of one request, and the coarse steps between; one entry: fixed.
    pub block_sizes: Vec<u32>,
    /// As for block sizes.
    pub queue_depths: Vec<u16>,
    /// As for block sizes.
    pub workers: Vec<usize>,
    /// Buffer memory by number of workers.
    pub memory_max: fn(usize, Option<u64>) -> u64,
    /// What the user said of memory.
    pub memory_limit: Option<u64>,
    /// Multiple that every block size must be.
    pub granule: u32,
}

impl Space {
    /// Whether a candidate may be tried.
    pub fn allows(&self, candidate: &Candidate) -> bool {
        let between = |value: u64, list: &mut dyn Iterator<Item = u64>| {
            let (least, most) = list.fold((u64::MAX, 0), |(a, b), v| (a.min(v), b.max(v)));
            (least..=most).contains(&value)
        };
        between(candidate.block_size.into(), &mut self.block_sizes.iter().map(|&v| v.into()))
            && between(candidate.queue_depth.into(), &mut self.queue_depths.iter().map(|&v| v.into()))
            && between(candidate.workers as u64, &mut self.workers.iter().map(|&v| v as u64))
            && candidate.block_size.is_multiple_of(self.granule)
            && candidate.memory_bytes() <= (self.memory_max)(candidate.workers, self.memory_limit)
    }

    /// The coarse grid, in the order in which it is drawn.
    pub fn coarse(&self) -> Vec<Candidate> {
        let mut grid = Vec::new();
        for &workers in &self.workers {
            for &block_size in &self.block_sizes {
                for &queue_depth in &self.queue_depths {
                    grid.push(Candidate { workers, block_size, queue_depth });
                }
            }
        }
        grid.retain(|candidate| self.allows(candidate));
        grid
    }

    /// What differs from a candidate by one step of one flag.
    pub fn neighbours(&self, of: &Candidate) -> Vec<Candidate> {
        let mut near = vec![
            Candidate { block_size: of.block_size / 2, ..*of },
            Candidate { block_size: of.block_size.saturating_mul(2), ..*of },
            Candidate { queue_depth: of.queue_depth / 2, ..*of },
            Candidate { queue_depth: of.queue_depth.saturating_mul(2), ..*of },
            Candidate { workers: of.workers + 1, ..*of },
            Candidate { workers: of.workers - 1, ..*of },
        ];
        near.retain(|candidate| self.allows(candidate));
        near
    }
}

/// Which part of the search a measurement belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The whole space.
    Coarse,
    /// Around the best.
    Refine,
    /// The best against each other.
    Final,
}

/// Everything that was measured of one candidate.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Which.
    pub candidate: Candidate,
    /// First stage it was measured in.
    pub stage: Stage,
    /// Bytes a second, one entry for each measurement.
    pub rates: Vec<f64>,
}

impl Cell {
    /// Median of its measurements.
    pub fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        match rates.len() {
            0 => 0.0,
            n if n % 2 == 1 => rates[n / 2],
            n => (rates[n / 2 - 1] + rates[n / 2]) / 2.0,
        }
    }
}

/// Candidates this much below the best may owe it to noise and are measured again.
const WITHIN_NOISE: f64 = 0.90;
/// Most candidates that are measured against each other.
pub const FINALISTS: usize = 5;
/// How often each of them is.
pub const ROUNDS: usize = 3;
/// Rounds of refinement: each looks around the best so far.
pub const REFINEMENTS: usize = 2;
/// What counts as the best throughput: within this share of it, the least memory wins.
pub const AS_GOOD: f64 = 0.97;

/// Most measurements that a search of this space takes.
pub fn measurements_max(space: &Space) -> usize {
    space.coarse().len() + REFINEMENTS * 6 + FINALISTS * ROUNDS
}

/// Searches. `measure` gives bytes a second, or `None` when the run was stopped. `wanted` is measured with
/// the finalists: the defaults, to compare with.
///
/// # Errors
/// Those of `measure`.
pub fn search(
    space: &Space,
    wanted: Option<Candidate>,
    mut measure: impl FnMut(&Candidate, Stage) -> Result<Option<f64>>,
) -> Result<Vec<Cell>> {
    let mut cells: Vec<Cell> = Vec::new();
    let mut try_one = |cells: &mut Vec<Cell>, candidate: &Candidate, stage: Stage| -> Result<bool> {
        let Some(rate) = measure(candidate, stage)? else { return Ok(false) };
        match cells.iter_mut().find(|cell| cell.candidate == *candidate) {
            Some(cell) => cell.rates.push(rate),
            None => cells.push(Cell { candidate: *candidate, stage, rates: vec![rate] }),
        }
        Ok(true)
    };
    for candidate in space.coarse() {
        if !try_one(&mut cells, &candidate, Stage::Coarse)? {
            return Ok(cells);
        }
    }
    for _ in 0..REFINEMENTS {
        let Some(best) = fastest(&cells) else { break };
        let near = space.neighbours(&best.candidate);
        let new: Vec<_> =
            near.into_iter().filter(|c| !cells.iter().any(|cell| cell.candidate == *c)).collect();
        for candidate in new {
            if !try_one(&mut cells, &candidate, Stage::Refine)? {
                return Ok(cells);
            }
        }
    }
    let finalists = finalists(&cells, wanted.filter(|candidate| space.allows(candidate)));
    for _ in 0..ROUNDS {
        for candidate in &finalists {
            if !try_one(&mut cells, candidate, Stage::Final)? {
                return Ok(cells);
            }
        }
    }
    Ok(cells)
}

fn fastest(cells: &[Cell]) -> Option<&Cell> {
    cells.iter().max_by(|a, b| a.rate().total_cmp(&b.rate()))
}

/// The fastest, the wanted one, and of those that may be as fast the ones with the least memory.
fn finalists(cells: &[Cell], wanted: Option<Candidate>) -> Vec<Candidate> {
    let Some(best) = fastest(cells) else { return wanted.into_iter().collect() };
    let mut near: Vec<_> = cells.iter().filter(|cell| cell.rate() >= WITHIN_NOISE * best.rate()).collect();
    near.sort_by_key(|cell| cell.candidate.memory_bytes());
    let mut list = vec![best.candidate];
    list.extend(wanted.filter(|wanted| *wanted != best.candidate));
    for cell in near {
        if list.len() < FINALISTS && !list.contains(&cell.candidate) {
            list.push(cell.candidate);
        }
    }
    list
}

/// The best flags: the least memory within [`AS_GOOD`] of the best throughput; of equal memory the faster.
/// Only what was measured most often is trusted.
pub fn best(cells: &[Cell]) -> Option<&Cell> {
    let most = cells.iter().map(|cell| cell.rates.len()).max()?;
    // A coarse cell that became a finalist has one measurement more than one that did not.
    let trusted = || cells.iter().filter(|cell| cell.rates.len() + 1 >= most);
    let top = trusted().map(Cell::rate).fold(0.0, f64::max);
    trusted().filter(|cell| cell.rate() >= AS_GOOD * top).min_by(|a, b| {
        let memory = a.candidate.memory_bytes().cmp(&b.candidate.memory_bytes());
        memory.then(b.rate().total_cmp(&a.rate()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> Space {
        Space {
            block_sizes: vec![64 << 10, 256 << 10, 1 << 20, 4 << 20],
            queue_depths: vec![1, 4, 16, 64],
            workers: vec![1, 2],
            memory_max: |_, _| 64 << 20,
            memory_limit: None,
            granule: 4096,
        }
    }

    /// A device that saturates at a number of bytes in flight, with a cost for each request.
    fn surface(candidate: &Candidate, saturated_bytes: f64) -> f64 {
        let in_flight = candidate.memory_bytes() as f64;
        let cost = 1.0 / (1.0 + 16_384.0 / f64::from(candidate.block_size));
        2e9 * cost * (in_flight / saturated_bytes).min(1.0)
    }

    #[test]
    fn the_least_memory_near_the_best_wins() {
        for saturated in [1u64 << 20, 4 << 20, 16 << 20] {
            let measure = |candidate: &Candidate, _| Ok(Some(surface(candidate, saturated as f64)));
            let cells = search(&space(), None, measure).unwrap();
            let best = best(&cells).unwrap();
            assert!(best.rate() >= 0.97 * 0.97 * 2e9, "{best:?}");
            assert!(best.candidate.memory_bytes() <= saturated * 2, "{saturated}: {best:?}");
        }
    }

    #[test]
    fn refinement_reaches_what_the_grid_has_not() {
        // Best at depth 8, which is no coarse step.
        let measure = |candidate: &Candidate, _| {
            Ok(Some(if candidate.queue_depth == 8 && candidate.block_size == 1 << 20 {
                2e9
            } else {
                surface(candidate, 1e6) / 2.0
            }))
        };
        let mut small = space();
        small.block_sizes = vec![1 << 20];
        let cells = search(&small, None, measure).unwrap();
        assert_eq!(best(&cells).unwrap().candidate.queue_depth, 8);
    }

    #[test]
    fn noise_is_averaged_before_flags_are_named() {
        let mut random = mover_engine::pattern::SplitMix::new(42);
        let measure = |candidate: &Candidate, _| {
            let noise = 1.0 + (random.below(1000) as f64 / 1000.0 - 0.5) * 0.06;
            Ok(Some(surface(candidate, 4e6) * noise))
        };
        let cells = search(&space(), None, measure).unwrap();
        let best = best(&cells).unwrap();
        assert!(surface(&best.candidate, 4e6) > 0.9 * 2e9, "{best:?}");
    }

    #[test]
    fn nothing_leaves_the_space_and_the_count_is_bounded() {
        let mut tight = space();
        tight.memory_max = |workers, limit| limit.unwrap_or(8 << 20) * workers as u64;
        tight.memory_limit = Some(2 << 20);
        let mut count = 0;
        let default = Candidate { workers: 2, block_size: 1 << 20, queue_depth: 8 };
        let cells = search(&tight, Some(default), |candidate, _| {
            count += 1;
            assert!(tight.allows(candidate), "{candidate:?}");
            Ok(Some(surface(candidate, 4e6)))
        })
        .unwrap();
        assert!(count <= measurements_max(&tight));
        assert!(cells.iter().all(|cell| cell.candidate != default), "the default does not fit here");
        let mut fixed = space();
        fixed.block_sizes = vec![1 << 20];
        fixed.queue_depths = vec![8];
        fixed.workers = vec![1];
        assert_eq!(fixed.coarse().len(), 1);
        assert_eq!(fixed.neighbours(&fixed.coarse()[0]), []);
    }

    #[test]
    fn a_stopped_search_keeps_what_it_has() {
        let mut left = 5;
        let cells = search(&space(), None, |candidate, _| {
            left -= 1;
            Ok((left >= 0).then(|| surface(candidate, 4e6)))
        })
        .unwrap();
        assert_eq!(cells.len(), 5);
        assert!(best(&cells).is_some());
        assert!(best(&[]).is_none());
    }
}
