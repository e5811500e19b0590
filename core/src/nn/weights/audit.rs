//! What files hold, and everything that does not fit: for people, where [`Weights::require`] is for programs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Stored, Weights};

/// How much is stored below a scope, and in which types.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// Numbers in all tensors, used by a network or not.
    pub parameters: u64,
    /// Bytes of the tensors in the files, headers not counted.
    pub bytes: u64,
    /// How many tensors of each element type, with `scaled` where they have scales.
    pub types: BTreeMap<String, usize>,
}

impl Weights {
    /// What the files hold below the scope.
    pub fn storage(&self) -> Storage {
        let mut storage = Storage::default();
        for name in self.below() {
            let Ok((_, entry)) = self.find(name) else {
                continue;
            };
            storage.parameters += entry.shape.iter().product::<usize>() as u64;
            storage.bytes += (entry.end - entry.start) as u64;
            let mut kind = entry.dtype.to_string();
            if entry.scale.is_some() {
                kind += " scaled";
            }
            *storage.types.entry(kind).or_default() += 1;
        }
        storage
    }

    /// Every fault of these tensors (canonical names and shapes) that the headers tell: missing, misshapen, of a
    /// type that weights are not read from.
    pub fn faults(&self, tensors: &[(String, Vec<usize>)]) -> Vec<Error> {
        let stored: Vec<Stored> = tensors.iter().map(|(name, _)| self.stored(name)).collect();
        let expected: BTreeSet<&str> = stored.iter().map(|s| s.name.as_str()).collect();
        let fault = |(stored, (_, shape)): (&Stored, &(String, Vec<usize>))| {
            if self.shared.tensors.contains_key(&stored.name) {
                self.checked(stored, shape).err()
            } else {
                Some(self.missing(&stored.name, &expected))
            }
        };
        // Three canonical tensors may be slices of one stored tensor: its absence is told once.
        let mut told = BTreeSet::new();
        let first = |fault: &Error| told.insert(fault.to_string());
        stored
            .iter()
            .zip(tensors)
            .filter_map(fault)
            .filter(first)
            .collect()
    }

    /// The names in the files below the scope that none of these tensors (canonical names) is stored under.
    pub fn extra(&self, tensors: &[(String, Vec<usize>)]) -> Vec<String> {
        let known: BTreeSet<String> = tensors
            .iter()
            .map(|(name, _)| self.stored(name).name)
            .collect();
        let idle = |name: &str| Some(&name[self.root.len()..]) == self.idle;
        let below = self
            .below()
            .filter(|name| !known.contains(*name) && !idle(name));
        below.map(str::to_owned).collect()
    }
}
