//! Decoders are other people's code on other people's files: a panic in one is an error of its file, in one line.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic on this thread is about to become an error.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it becomes its message, and is not told to the process's panic hook, which would print it.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                before(info);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    // What `work` leaves half done is dropped with it: it gets a file's bytes and gives pixels.
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("no reason given").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn a_panic_is_its_message_and_others_still_reach_the_hook() {
        assert_eq!(guarded(|| 3), Ok(3));
        let bad: Vec<u8> = Vec::new();
        let message = guarded(|| bad[7]).expect_err("a panic");
        assert!(message.contains("index is 7"), "{message}");
        assert_eq!(
            guarded(|| -> u8 { panic!("a {}", "reason") }),
            Err("a reason".to_owned())
        );
        assert!(!super::IS_GUARDED.get());
    }
}
