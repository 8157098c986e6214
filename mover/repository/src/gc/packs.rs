//! The packs of a repository as gc counts them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use mover_model::Result;

use crate::format::pack::pack_key;
use crate::names::ObjectName;
use crate::repository::Repository;

/// One pack.
#[derive(Debug)]
pub(crate) struct Pack {
    pub name: ObjectName,
    /// Bytes of the object; `None`: there is none.
    pub size: Option<u64>,
    /// Whether a segment names it.
    pub indexed: bool,
    /// Whether it is on a doom list: chosen as a place only where there is no other.
    pub doomed: bool,
    /// Bytes of its records, as the segments tell.
    pub record_bytes: u64,
    /// Bytes of living records that have their chosen place here.
    pub living_bytes: AtomicU64,
    /// Their number.
    pub living: AtomicU64,
}

/// All packs that are in the store or named by a segment.
#[derive(Debug, Default)]
pub(crate) struct Packs {
    table: Vec<Pack>,
    numbers: HashMap<ObjectName, u32>,
}

impl Packs {
    /// The number of a pack; it is added where it is new.
    pub fn number(&mut self, name: ObjectName) -> u32 {
        let table = &mut self.table;
        *self.numbers.entry(name).or_insert_with(|| {
            table.push(Pack {
                name,
                size: None,
                indexed: false,
                doomed: false,
                record_bytes: 0,
                living_bytes: AtomicU64::new(0),
                living: AtomicU64::new(0),
            });
            (table.len() - 1) as u32
        })
    }

    /// Lists the store's packs anew.
    pub fn list(&mut self, repository: &Repository) -> Result<()> {
        self.table.iter_mut().for_each(|pack| pack.size = None);
        for listed in repository.store().list("packs/")? {
            // What is not where a pack of its name lies is none of ours.
            if let Ok(name) = listed.key.last().parse::<ObjectName>()
                && pack_key(name) == listed.key
            {
                let number = self.number(name);
                self.get_mut(number).size = Some(listed.size);
            }
        }
        Ok(())
    }

    /// Says which packs are on a doom list.
    pub fn doom(&mut self, names: &HashSet<ObjectName>) {
        self.table.iter_mut().for_each(|pack| pack.doomed = names.contains(&pack.name));
    }

    pub fn get(&self, number: u32) -> &Pack {
        &self.table[number as usize]
    }

    pub fn get_mut(&mut self, number: u32) -> &mut Pack {
        &mut self.table[number as usize]
    }

    pub fn find(&self, name: ObjectName) -> Option<&Pack> {
        self.numbers.get(&name).map(|&number| self.get(number))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pack> {
        self.table.iter()
    }
}

impl Pack {
    /// A living chunk has its place here.
    pub fn lives(&self, stored: u32) {
        self.living.fetch_add(1, Ordering::Relaxed);
        self.living_bytes.fetch_add(u64::from(stored), Ordering::Relaxed);
    }

    /// Whether anything has its place here.
    pub fn is_living(&self) -> bool {
        self.living.load(Ordering::Relaxed) > 0
    }

    /// Its living chunks have been copied elsewhere: from now on it counts what lives here and nowhere else.
    pub fn moved_out(&self) {
        self.living.store(0, Ordering::Relaxed);
        self.living_bytes.store(0, Ordering::Relaxed);
    }

    /// The living share of its records.
    pub fn living_share(&self) -> f64 {
        self.living_bytes.load(Ordering::Relaxed) as f64 / self.record_bytes.max(1) as f64
    }
}
