//! Ctrl-C (SIGINT) and SIGTERM, for commands whose work can end well before it is done. The first is heeded as soon as the work may end
//! and somebody asks for it ([`asked`]); before that, and at a second one, the program ends at once. Where it holds leases on a store on object storage,
//! the first gives them back before.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use plumb::monitor::Signal;
use plumb::store;

use crate::ui::{Failure, Ui};

/// The first signal that came, [`INTERRUPT`] or [`TERMINATE`]; 0 for none.
static FOUND: AtomicU8 = AtomicU8::new(0);
/// Whether the work has come so far that it asks.
static IS_ASKED: AtomicBool = AtomicBool::new(false);
/// Whether the work waits for somebody else, with nothing begun.
static IS_IDLE: AtomicBool = AtomicBool::new(false);

/// The signal that asks the work to end, if one came. Who asks promises to end soon where there is one.
pub(crate) fn asked() -> Option<Signal> {
    IS_ASKED.store(true, Ordering::SeqCst);
    found()
}

/// The same, without a promise.
pub(crate) fn found() -> Option<Signal> {
    match FOUND.load(Ordering::SeqCst) {
        0 => None,
        INTERRUPT => Some(Signal::Interrupt),
        _ => Some(Signal::Terminate),
    }
}

const INTERRUPT: u8 = 1;
const TERMINATE: u8 = 2;

/// Gives the command's work time to end, which is told as `what`.
pub(crate) fn heed(what: &'static str, ui: &Ui) -> Result<(), Failure> {
    let tell = ui.teller();
    // Of two calls the first tells.
    let _ = TELLER.set(Box::new(move || {
        tell(&format!("{what}; a second time ends at once"));
    }));
    watch().map_err(|e| Failure::error(format!("signals cannot be waited for: {e}")))
}

/// Lets a signal that ends the program at once give back its leases on stores first: nobody else could remove anything there, or add, until they
/// have run out. What the system does where signals cannot be waited for.
pub(crate) fn give_back_leases() {
    let _ = watch();
}

/// Tells that the first signal is heeded.
static TELLER: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

#[cfg(unix)]
fn watch() -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level;

    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.load(Ordering::SeqCst) {
        return Ok(());
    }
    // As it would without us, so that a shell sees what ended the program.
    let end = |number| {
        let _ = low_level::emulate_default_handler(number);
    };
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let heeds = move || {
        for number in signals.forever() {
            let code = if number == SIGINT {
                INTERRUPT
            } else {
                TERMINATE
            };
            let first = FOUND.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
            let at_once = !IS_ASKED.load(Ordering::SeqCst) || IS_IDLE.load(Ordering::SeqCst);
            match (first, TELLER.get()) {
                (Ok(_), Some(tell)) if !at_once => tell(),
                // In a thread of its own: a second signal does not wait for the network.
                (Ok(_), _) if store::has_leases() => {
                    let work = move || {
                        let _no_more = store::give_back_leases();
                        end(number);
                    };
                    let begun = std::thread::Builder::new().spawn(work);
                    if begun.is_err() {
                        end(number);
                    }
                }
                _ => end(number),
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(heeds)
        .map(|_| WATCHED.store(true, Ordering::SeqCst))
}

/// Elsewhere the system ends the program.
#[cfg(not(unix))]
fn watch() -> std::io::Result<()> {
    Ok(())
}

/// Input that somebody else sends. While it is waited for, nothing is lost where a signal ends the program; after one it is at its end.
pub(crate) struct Awaited<R>(pub(crate) R);

impl<R: std::io::Read> std::io::Read for Awaited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        IS_IDLE.store(true, Ordering::SeqCst);
        // Asked after it is said that nothing is begun: a signal sees the one or is seen here.
        let read = match found() {
            Some(_) => Ok(0),
            None => self.0.read(buffer),
        };
        IS_IDLE.store(false, Ordering::SeqCst);
        read
    }
}
