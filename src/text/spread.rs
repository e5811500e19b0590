//! Captions divided among the threads of a processor: each group of captions goes through all layers by itself, by threads of its own,
//! so that no thread waits for others between two operations. A caption's numbers depend on neither (`mod.rs`), so the division is free.

use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use rayon::ThreadPoolBuilder;

use super::{Encoded, Error, Tokens};

/// Rows below which a group is not worth having: each reads all weights again.
const FEWEST_ROWS: usize = 256;

/// Encodes `captions`, of which each has so many rows, in groups at once.
///
/// # Errors
/// As `encode`; of several errors, that of the first captions.
pub(super) fn spread(
    captions: &[Tokens],
    rows: impl Fn(&Tokens) -> usize,
    encode: impl Fn(&[Tokens]) -> Result<Vec<Encoded>, Error> + Sync,
) -> Result<Vec<Encoded>, Error> {
    let rows: Vec<usize> = captions.iter().map(rows).collect();
    let threads = rayon::current_num_threads();
    let groups = (rows.iter().sum::<usize>() / FEWEST_ROWS)
        .min(threads)
        .min(captions.len());
    if groups < 2 {
        return encode(captions);
    }
    let encode = &encode;
    let each: Vec<Result<_, Error>> = thread::scope(|scope| {
        let running: Vec<_> = divided(&rows, groups)
            .into_iter()
            .enumerate()
            .map(|(group, range)| {
                let count = threads / groups + usize::from(group < threads % groups);
                scope.spawn(move || {
                    let first = range.start;
                    let encoded = match ThreadPoolBuilder::new().num_threads(count).build() {
                        Ok(pool) => pool.install(|| encode(&captions[range])),
                        // No more threads are to be had: by those there are.
                        Err(_) => encode(&captions[range]),
                    };
                    encoded.map_err(|e| e.of_captions_from(first))
                })
            })
            .collect();
        running
            .into_iter()
            .map(|group| group.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let mut encoded = Vec::with_capacity(captions.len());
    for group in each {
        encoded.extend(group?);
    }
    Ok(encoded)
}

/// Captions with so many rows as neighbours in `groups` groups of about as many rows; some may be empty.
fn divided(rows: &[usize], groups: usize) -> Vec<Range<usize>> {
    let total: usize = rows.iter().sum();
    let (mut start, mut before) = (0, 0);
    let mut ranges = Vec::with_capacity(groups);
    for group in 1..=groups {
        let mut end = start;
        // A caption goes where its middle lies.
        while end < rows.len() && (2 * before + rows[end]) * groups <= 2 * total * group {
            before += rows[end];
            end += 1;
        }
        ranges.push(start..end);
        start = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_lengths(lengths: &[usize]) -> Vec<Tokens> {
        let of = |&length: &usize| Tokens {
            ids: vec![7; length],
            count: length,
            truncated: false,
            total: length,
        };
        lengths.iter().map(of).collect()
    }

    fn by_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool").install(work)
    }

    #[test]
    fn captions_keep_their_order_and_groups_their_threads() {
        let captions = of_lengths(&[300, 10, 500, 77, 77, 500, 90]);
        for threads in [1, 2, 3, 8] {
            let lengths = by_threads(threads, || {
                let encode = |some: &[Tokens]| {
                    assert!(rayon::current_num_threads() <= threads.div_ceil(2) || threads == 1);
                    let one = |tokens: &Tokens| {
                        let hidden = candle_core::Tensor::new(
                            tokens.ids.clone(),
                            &candle_core::Device::Cpu,
                        )?;
                        Ok(Encoded {
                            hidden: Some(hidden),
                            pooled: None,
                        })
                    };
                    some.iter().map(one).collect()
                };
                spread(&captions, |tokens| tokens.ids.len(), encode)
            });
            let lengths: Vec<usize> = lengths
                .expect("encoded")
                .iter()
                .map(|encoded| encoded.hidden.as_ref().map_or(0, |t| t.elem_count()))
                .collect();
            assert_eq!(lengths, [300, 10, 500, 77, 77, 500, 90]);
        }
    }

    #[test]
    fn an_error_names_the_caption_of_the_call() {
        let captions = of_lengths(&[300, 300, 300, 301]);
        for threads in [1, 2, 4] {
            let refused = by_threads(threads, || {
                spread(
                    &captions,
                    |tokens| tokens.ids.len(),
                    |some| match some.iter().position(|tokens| tokens.ids.len() > 300) {
                        Some(caption) => Err(Error::TooLong {
                            caption,
                            tokens: 301,
                            limit: 300,
                        }),
                        None => Ok(vec![Encoded::default(); some.len()]),
                    },
                )
            });
            let told = refused.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(told.starts_with("caption 3 has 301 tokens"), "{told}");
        }
    }

    #[test]
    fn every_caption_is_in_one_group_and_groups_are_even() {
        let cases: [(&[usize], usize); 5] = [
            (&[77; 16], 2),
            (&[77; 3], 2),
            (&[1, 500, 1, 1, 1, 500, 1], 3),
            (&[1000, 1, 1, 1], 3),
            (&[9, 12, 14, 17, 200, 21, 23, 26], 5),
        ];
        for (rows, groups) in cases {
            let ranges = divided(rows, groups);
            assert_eq!(ranges.len(), groups);
            let all: Vec<usize> = ranges.iter().cloned().flatten().collect();
            assert_eq!(all, (0..rows.len()).collect::<Vec<_>>(), "{rows:?}");
            let (total, longest) = (rows.iter().sum::<usize>(), rows.iter().max());
            for range in ranges {
                let sum: usize = rows[range].iter().sum();
                assert!(sum <= total / groups + longest.unwrap_or(&0), "{rows:?}");
            }
        }
    }
}
