//! The CPU pool: work over about 50 µs leaves the async threads here.
//!
//! Promises that a task runs once and that its panic reaches the caller as a panic, never as silence. It knows nothing
//! of what the work is.

use std::sync::Arc;

/// A pool of threads for hashing, sealing and compressing; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Cpu {
    /// Returns a pool of `threads` threads.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|n| format!("cpu-{n}"))
            .build()
            .expect("the system can start threads");
        Self { pool: Some(Arc::new(pool)) }
    }

    /// Returns a pool that does the work at once, in the caller's thread: for replayable tests.
    #[must_use]
    pub fn inline() -> Self {
        Self { pool: None }
    }

    /// Runs `work` and waits for it without blocking the async thread.
    ///
    /// # Panics
    /// If `work` panics.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(pool) = &self.pool else { return work() };
        let (done, answer) = tokio::sync::oneshot::channel();
        pool.spawn_fifo(move || {
            let _ = done.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        });
        match answer.await.expect("the pool runs what it took") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts `work` and returns at once; the answer comes through the returned [`Job`].
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Job<T> {
        let (done, answer) = crossbeam_channel::bounded(1);
        match &self.pool {
            Some(pool) => pool.spawn_fifo(move || {
                let _ = done.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
            }),
            None => {
                let _ = done.send(Ok(work()));
            }
        }
        Job { answer }
    }
}

/// Work under way in a [`Cpu`] pool.
pub struct Job<T> {
    answer: crossbeam_channel::Receiver<std::thread::Result<T>>,
}

impl<T> Job<T> {
    /// Blocks until the work is done.
    ///
    /// # Panics
    /// If the work panicked.
    pub fn wait(self) -> T {
        unwind(self.answer.recv().expect("the pool runs what it took"))
    }

    /// Returns the answer if it is there, else the job again.
    ///
    /// # Panics
    /// If the work panicked.
    pub fn try_wait(self) -> Result<T, Self> {
        match self.answer.try_recv() {
            Ok(answer) => Ok(unwind(answer)),
            Err(_) => Err(self),
        }
    }
}

fn unwind<T>(answer: std::thread::Result<T>) -> T {
    match answer {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_the_pool_reaches_the_caller() {
        let cpu = Cpu::new(1);
        assert_eq!(cpu.run(|| 3).await, 3);
        let task = tokio::spawn(async move { cpu.run(|| panic!("boom")).await });
        assert!(task.await.is_err());
    }
}
