//! What happens between entries that are made: commits, pushes to object storage, and a look whether the work is to end.

use super::{EncodeOptions, Error};
use crate::monitor::{Clock, Monitor, Signal, Silent, Stop, never};
use crate::store::{Store, StoreWriter};

/// The least time between two pushes, in seconds: what a machine that is lost costs.
const LEAST_SECONDS: f64 = 300.0;
/// Of the time, pushes take about the share 1 / (1 + this).
const WORK_FOR_PUSH: f64 = 10.0;

/// The pauses of one encoding.
pub(super) struct Pauses<'a> {
    store: &'a Store,
    stop: Stop,
    /// None where nothing is pushed before the end.
    pushes: Option<Pushes>,
    stopped: Option<Signal>,
}

/// When a store on object storage is pushed to.
struct Pushes {
    clock: Clock,
    /// The end of the last push.
    last: f64,
    /// Seconds until the next.
    wait: f64,
}

impl<'a> Pauses<'a> {
    /// Of an encoding that may end early and pushes what it has made meanwhile.
    pub(super) fn of(store: &'a Store, options: &EncodeOptions) -> Self {
        let pushes = Pushes {
            clock: options.clock,
            last: (options.clock)(),
            wait: LEAST_SECONDS,
        };
        Self {
            store,
            stop: options.stop,
            pushes: store.is_remote().then_some(pushes),
            stopped: None,
        }
    }

    /// Of one that makes all that it was asked for, for whoever looks at it next.
    pub(super) fn none(store: &'a Store) -> Self {
        Self {
            store,
            stop: never,
            pushes: None,
            stopped: None,
        }
    }

    /// The signal that ended the work.
    pub(super) fn stopped(&self) -> Option<Signal> {
        self.stopped
    }

    /// What is asked in the middle of work that takes long.
    pub(super) fn stop(&self) -> Stop {
        self.stop
    }

    /// Takes note that the work was ended in the middle.
    pub(super) fn end(&mut self, signal: Signal) {
        self.stopped.get_or_insert(signal);
    }

    /// Whether the work is to end here.
    pub(super) fn ends(&mut self) -> bool {
        if self.stopped.is_none() {
            self.stopped = (self.stop)();
        }
        self.stopped.is_some()
    }

    /// Commits what has come together, and pushes where it is time.
    ///
    /// # Errors
    /// If the store cannot be written. A push that fails is tried again, and the last one's error is told.
    pub(super) fn keep(
        &mut self,
        writer: &mut StoreWriter,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        writer.commit_if_large()?;
        let Some(pushes) = &mut self.pushes else {
            return Ok(());
        };
        let begun = (pushes.clock)();
        // A clock that is set back would be in the way for long.
        if begun >= pushes.last && begun < pushes.last + pushes.wait {
            return Ok(());
        }
        writer.commit()?;
        monitor.status("pushing");
        // What is left out is told at the end, once.
        if let Err(error) = self.store.share(&Silent) {
            monitor.note(&format!("not pushed yet, and tried again later: {error}"));
        }
        monitor.status("");
        pushes.last = (pushes.clock)();
        pushes.wait = LEAST_SECONDS.max(WORK_FOR_PUSH * (pushes.last - begun));
        Ok(())
    }
}
