//! Work on many files at once, within a bound on the memory that all of it takes together.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

/// What decoding takes at most, over all threads. A picture that needs more is decoded alone.
pub(super) const DECODING_BYTES: u64 = 2 << 30;

/// Bytes that may still be taken.
struct Budget {
    all: u64,
    left: Mutex<u64>,
    freed: Condvar,
}

/// Some bytes of a budget, given back when it is dropped.
struct Taken<'a>(&'a Budget, u64);

impl Budget {
    fn take(&self, bytes: u64) -> Taken<'_> {
        let bytes = bytes.min(self.all);
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.freed.wait_while(left, |left| *left < bytes);
        *left.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Taken(self, bytes)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut left = self.0.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left += self.1;
        self.0.freed.notify_all();
    }
}

/// `work` on each task, in the order of the tasks, on as many threads as computations have. At any time the tasks at work
/// need at most `bytes` together by `need`, or there is one of them.
///
/// Not on rayon's own threads: one that waits there takes up other work, such as the next task, for which it would then wait while
/// it holds what the first one needs.
pub(super) fn map_within<T: Sync, R: Send>(
    bytes: u64,
    tasks: &[T],
    need: impl Fn(&T) -> u64 + Sync,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let budget = Budget {
        all: bytes,
        left: Mutex::new(bytes),
        freed: Condvar::new(),
    };
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some((n, task)) = tasks
            .iter()
            .enumerate()
            .nth(next.fetch_add(1, Ordering::Relaxed))
        {
            let _taken = budget.take(need(task));
            done.push((n, work(task)));
        }
        done
    };
    let threads = rayon::current_num_threads().min(tasks.len());
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let done = workers.into_iter().map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.flatten().collect()
    });
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use super::*;

    #[test]
    fn tasks_at_work_stay_within_the_budget_and_come_back_in_order() {
        let (at_work, most) = (AtomicU64::new(0), AtomicU64::new(0));
        // One needs more than there is: it is done alone.
        let tasks = [3, 7, 2, 50, 1, 4, 9, 10, 1, 1];
        let doubled = map_within(
            10,
            &tasks,
            |&n| n,
            |&n| {
                let n = n.min(10);
                let now = at_work.fetch_add(n, Ordering::SeqCst) + n;
                most.fetch_max(now, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(3));
                at_work.fetch_sub(n, Ordering::SeqCst);
                2 * n
            },
        );
        assert_eq!(doubled, [6, 14, 4, 20, 2, 8, 18, 20, 2, 2]);
        assert!(most.into_inner() <= 10);
        assert!(map_within(1, &[0u64; 0], |&n| n, |&n| n).is_empty());
    }

    #[test]
    fn a_panic_in_one_task_ends_all_and_leaves_nobody_waiting() {
        let tasks: Vec<u64> = (0..20).collect();
        let ended =
            std::panic::catch_unwind(|| map_within(1, &tasks, |_| 1, |&n| assert!(n != 5, "five")));
        assert!(ended.is_err());
    }
}
