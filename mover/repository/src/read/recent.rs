//! A bounded cache in two generations: what is used moves to the young one, and when that is full, the old one goes.

use std::collections::HashMap;
use std::hash::Hash;

/// What was used not long ago. Each step costs the same, whatever the bound.
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// Holds at most `most` values, and at least the last half of them that were used.
    pub fn new(most: usize) -> Self {
        Recent { young: HashMap::new(), old: HashMap::new(), half: (most / 2).max(1) }
    }

    /// The value of a key, if it is still there.
    pub fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.put(key, value.clone());
        Some(value)
    }

    /// Keeps a value.
    pub fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Values that it holds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut recent = Recent::new(8);
        recent.put(1000, 0);
        for key in 0..100 {
            recent.put(key, key);
            assert_eq!(recent.get(&1000), Some(0), "used after every put");
            assert_eq!(recent.get(&key), Some(key));
            assert!(recent.len() <= 8);
        }
        assert_eq!(recent.get(&1), None);
        for key in 97..100 {
            assert_eq!(recent.get(&key), Some(key));
        }
    }
}
