//! How long an answer is waited for: until the deadline, and no longer than the program that asked lives.
//!
//! A request that the kernel has handed over cannot be abandoned by its asker, not even when he is killed; FUSE's own
//! message for that (`FUSE_INTERRUPT`) is refused by fuser, and a kernel that was refused once never sends it again. So
//! who waits for longer than a moment is looked at: a thread that is to die has SIGKILL pending, whichever fatal signal
//! it was (signal(7)), and the answer `EINTR` lets it go. Nothing is looked at while nobody waits.

use std::time::Duration;

use super::errno::FsError;

/// A read of the store that takes longer than this is worth a look at who asked, again and again.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// SIGKILL in the masks of proc_pid_status(5).
const KILLED: u64 = 1 << (9 - 1);

/// Waits for `work`: not beyond the deadline, and not for a thread that is being killed.
///
/// # Errors
/// [`FsError::TimedOut`], [`FsError::Interrupted`], what `work` fails of.
pub async fn wait<T>(
    work: impl Future<Output = Result<T, FsError>>,
    deadline: Duration,
    asker: u32,
) -> Result<T, FsError> {
    tokio::select! {
        biased;
        result = work => result,
        () = tokio::time::sleep(deadline) => Err(FsError::TimedOut(deadline)),
        () = killed(asker) => Err(FsError::Interrupted),
    }
}

/// Returns when the thread has been sent a fatal signal; never if it cannot be seen from here.
async fn killed(thread: u32) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match std::fs::read(format!("/proc/{thread}/status")) {
            Ok(status) if is_killed(&status) => return,
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        }
    }
}

/// Tells whether SIGKILL waits for the thread of a `/proc/<thread>/status`, sent to it or to its process.
fn is_killed(status: &[u8]) -> bool {
    status.split(|b| *b == b'\n').any(|line| {
        let mask = line.strip_prefix(b"SigPnd:").or_else(|| line.strip_prefix(b"ShdPnd:"));
        let mask = mask.and_then(|mask| std::str::from_utf8(mask).ok());
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & KILLED != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: &str, expected: bool) {
        assert_eq!(is_killed(status.as_bytes()), expected, "{status:?}");
    }

    #[test]
    fn a_thread_that_is_to_die_has_sigkill_pending() {
        check("Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true);
        check("Name:\tcat\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000102\n", true);
        check(
            "Name:\tSigPnd:\t100\nSigPnd:\t0000000000000002\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000100\n",
            false,
        );
        check("", false);
        check("SigPnd:\tno number\n", false);
    }

    #[tokio::test]
    async fn the_deadline_ends_a_wait_and_an_answer_in_time_is_taken() {
        let never = wait(std::future::pending::<Result<(), FsError>>(), Duration::from_millis(5), 0).await;
        assert!(matches!(never, Err(FsError::TimedOut(_))));
        let soon = wait(async { Ok(7) }, Duration::from_secs(60), std::process::id()).await;
        assert_eq!(soon.ok(), Some(7));
    }
}
