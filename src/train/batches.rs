//! Which samples make which micro-batch: a function of (seed, number of the micro-batch), nothing else, so
//! that a resumed run sees what the uninterrupted one would have seen.

use crate::rng::{Rng, Stream};

/// Samples in buckets, cut into micro-batches of one bucket each, shuffled anew every epoch.
///
/// A bucket's last batch may be short; no sample is dropped or doubled. So every epoch has the same number
/// of micro-batches.
#[derive(Clone)]
pub struct Batches {
    buckets: Vec<Vec<usize>>,
    batch_size: usize,
    seed: u64,
    per_epoch: u64,
    /// The epoch drawn last, with its number: batches are asked for in order, so one is enough.
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

impl Batches {
    /// Groups samples by `bucket_of` (one key per sample).
    pub fn new<K: Ord + Copy>(bucket_of: &[K], batch_size: usize, seed: u64) -> Self {
        // Ordered: in a hash map's order the draws of a seed would differ from process to process.
        let mut groups = std::collections::BTreeMap::<K, Vec<usize>>::new();
        for (sample, &key) in bucket_of.iter().enumerate() {
            groups.entry(key).or_default().push(sample);
        }
        let buckets: Vec<Vec<usize>> = groups.into_values().collect();
        let per_epoch = buckets
            .iter()
            .map(|b| b.len().div_ceil(batch_size) as u64)
            .sum();
        Self {
            buckets,
            batch_size,
            seed,
            per_epoch,
            epoch: None,
        }
    }

    /// Micro-batches in an epoch, the same number in each.
    pub fn num_per_epoch(&self) -> u64 {
        self.per_epoch
    }

    /// The samples of micro-batch `index`, counted from 0 over all epochs. Empty where there are no samples.
    pub fn get(&mut self, index: u64) -> &[usize] {
        // Without samples an epoch has no batches: a division by 0.
        let Some(epoch) = index.checked_div(self.per_epoch) else {
            return &[];
        };
        if self.epoch.as_ref().is_none_or(|(drawn, _)| *drawn != epoch) {
            self.epoch = Some((epoch, self.draw(epoch)));
        }
        let batches = self.epoch.as_ref().map_or(&[][..], |(_, batches)| batches);
        batches
            .get((index % self.per_epoch) as usize)
            .map_or(&[], Vec::as_slice)
    }

    fn draw(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = Rng::new(self.seed, Stream::Shuffle, epoch, 0);
        let mut batches = Vec::new();
        for bucket in &self.buckets {
            let mut order = bucket.clone();
            rng.shuffle(&mut order);
            batches.extend(order.chunks(self.batch_size).map(<[usize]>::to_vec));
        }
        // Otherwise an epoch would train on one size of pictures after the other.
        rng.shuffle(&mut batches);
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::Batches;

    #[test]
    fn an_epoch_has_every_sample_once_and_one_bucket_a_batch() {
        let keys: Vec<u32> = (0..103).map(|i| i % 3).collect();
        let mut batches = Batches::new(&keys, 4, 7);
        let per_epoch = batches.num_per_epoch();
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let mut seen = Vec::new();
            for index in epoch * per_epoch..(epoch + 1) * per_epoch {
                let batch = batches.get(index).to_vec();
                assert!(!batch.is_empty() && batch.len() <= 4);
                assert!(batch.iter().all(|&s| keys[s] == keys[batch[0]]));
                seen.extend(batch);
            }
            orders.push(seen.clone());
            seen.sort_unstable();
            assert_eq!(seen, (0..103).collect::<Vec<_>>());
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn a_batch_depends_on_its_number_alone() {
        let keys = [0u8; 10];
        let forward: Vec<_> = {
            let mut b = Batches::new(&keys, 3, 1);
            (0..12).map(|i| b.get(i).to_vec()).collect()
        };
        let mut b = Batches::new(&keys, 3, 1);
        for index in (0..12).rev() {
            assert_eq!(b.get(index), forward[index as usize]);
        }
    }

    #[test]
    fn no_samples_make_no_batches() {
        assert!(Batches::new::<u8>(&[], 3, 1).get(5).is_empty());
    }
}
