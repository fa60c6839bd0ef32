//! Threads that wait for work by spinning for a moment before they sleep: a decode step hands over some two hundred
//! pieces of work, each a few microseconds after the last one, and waking a thread takes longer than most of them.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Turns of waiting for the next job before a helper sleeps: some tens of microseconds.
const SPINS: u32 = 2_000;

/// Turns of waiting for helpers to finish before the caller offers its core to others.
const PATIENCE: u32 = 10_000;

/// Set in [`Shared::gate`] while helpers may join the job; the other bits count those that have.
const OPEN: usize = 1 << (usize::BITS - 1);

/// A job whose lifetime was erased: whoever publishes it does not return before every helper has left it.
type Job = *const (dyn Fn() + Sync);

/// Helpers of a calling thread.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held by the thread whose job it is.
    publisher: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    /// Counts jobs.
    epoch: AtomicU32,
    /// Whether helpers may join, and how many have joined and not left.
    gate: AtomicUsize,
    /// Written by the publisher while the gate is closed and nobody is inside; read by helpers inside.
    job: UnsafeCell<Option<Job>>,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    end: AtomicBool,
}

// SAFETY: `job` is the only part that is not thread-safe by itself. It is written only by the one thread that holds
// `publisher`, while the gate says that no helper is inside, and read only by helpers that are inside. What it points to is
// `Sync`, and lives until its publisher has seen the last helper leave.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is no more than a reference to something `Sync`.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `count` helpers.
    pub(super) fn new(count: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            gate: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            end: AtomicBool::new(false),
        });
        // Helpers that did start end with the pool, if a later one does not.
        let mut pool = Self { shared, helpers: Vec::new(), publisher: Mutex::new(()) };
        for i in 0..count {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("kernel-{}", i + 1));
            pool.helpers.push(builder.spawn(move || shared.help())?);
        }
        Ok(pool)
    }

    /// Runs `job` on this thread, and on every helper that comes before this thread is done with it. `job` must take its
    /// pieces from a common store, and return when there are none.
    ///
    /// While another thread, or this one further out, has a job in the pool, `job` runs on this thread alone.
    ///
    /// # Panics
    /// As `job` does, on whatever thread.
    pub(super) fn run(&self, job: &(dyn Fn() + Sync)) {
        let Ok(publisher) = self.publisher.try_lock() else { return job() };
        let published = Published::new(&self.shared, publisher, job);
        job();
        drop(published);
        if let Some(panic) = lock(&self.shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.shared.next();
        for helper in self.helpers.drain(..) {
            // A helper catches what its jobs panic with, and does nothing else that could.
            let _ = helper.join();
        }
    }
}

/// A job that helpers may join. Dropping it closes it and waits until the last one has left, also while unwinding.
struct Published<'a> {
    shared: &'a Shared,
    _publisher: MutexGuard<'a, ()>,
}

impl<'a> Published<'a> {
    fn new(shared: &'a Shared, publisher: MutexGuard<'a, ()>, job: &'a (dyn Fn() + Sync)) -> Self {
        let job: *const (dyn Fn() + Sync + 'a) = job;
        // SAFETY: only the lifetime changes, and helpers use the pointer only before `drop` returns.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + 'a), Job>(job) };
        // SAFETY: this thread holds `publisher`, and the last publisher left when the gate was closed and nobody inside.
        unsafe { *shared.job.get() = Some(job) };
        shared.gate.store(OPEN, Ordering::Release);
        shared.next();
        Self { shared, _publisher: publisher }
    }
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        self.shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0..PATIENCE;
        // Acquire: what the helpers wrote is seen from here on.
        while self.shared.gate.load(Ordering::Acquire) != 0 {
            match turns.next() {
                Some(_) => std::hint::spin_loop(),
                None => std::thread::yield_now(),
            }
        }
    }
}

impl Shared {
    /// Lets helpers know of something new.
    fn next(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        // Either this sees the sleeper, or the sleeper, which looks again after it has said that it sleeps, sees the epoch.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }

    /// What a helper does until the pool ends.
    fn help(&self) {
        let mut seen = 0;
        loop {
            seen = self.await_other(seen);
            if self.end.load(Ordering::SeqCst) {
                return;
            }
            self.join();
        }
    }

    /// Waits until the epoch is another one.
    fn await_other(&self, seen: u32) -> u32 {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = lock(&self.sleep);
        let epoch = loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                break epoch;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        epoch
    }

    /// Takes part in the job, unless it is closed already.
    fn join(&self) {
        let enter = |gate: usize| (gate & OPEN != 0).then(|| gate.wrapping_add(1));
        if self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter).is_err() {
            return;
        }
        // SAFETY: this thread is inside, so the job is there and stays until it leaves.
        let run = || unsafe { (*self.job.get()).map(|job| (*job)()) };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            lock(&self.panic).get_or_insert(panic);
        }
        self.gate.fetch_sub(1, Ordering::Release);
    }
}

/// What is behind these locks is whole at every instant, whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number below `count` is taken once, by whatever thread.
    fn count_up(pool: &Pool, count: usize) -> usize {
        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        pool.run(&|| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return;
                }
                sum.fetch_add(i, Ordering::Relaxed);
            }
        });
        sum.into_inner()
    }

    #[test]
    fn every_piece_is_done_once() {
        for helpers in [0, 1, 3, 7] {
            let pool = Pool::new(helpers).unwrap();
            for count in 0..500 {
                assert_eq!(count_up(&pool, count), count * count.saturating_sub(1) / 2, "{helpers} helpers");
            }
        }
    }

    #[test]
    fn helpers_that_slept_come_back() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            while pool.shared.sleepers.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            // Ends only when both helpers are inside together with this thread.
            let inside = AtomicUsize::new(0);
            pool.run(&|| {
                inside.fetch_add(1, Ordering::SeqCst);
                while inside.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn many_callers_and_jobs_within_jobs() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let inner = AtomicUsize::new(0);
                        let next = AtomicUsize::new(0);
                        pool.run(&|| {
                            while next.fetch_add(1, Ordering::Relaxed) < 4 {
                                inner.fetch_add(count_up(&pool, 10), Ordering::Relaxed);
                            }
                        });
                        assert_eq!(inner.into_inner(), 4 * 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_of_a_helper_reaches_the_caller_and_leaves_the_pool_whole() {
        let pool = Pool::new(2).unwrap();
        let caller = std::thread::current().id();
        for _ in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let panicked = AtomicBool::new(false);
                pool.run(&|| {
                    if std::thread::current().id() == caller {
                        while !panicked.load(Ordering::SeqCst) {
                            std::thread::yield_now();
                        }
                        return;
                    }
                    panicked.store(true, Ordering::SeqCst);
                    panic!("from a helper");
                });
            }));
            assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"from a helper"));
            assert_eq!(count_up(&pool, 100), 4_950);
        }
    }

    #[test]
    fn a_panic_of_the_caller_waits_for_helpers() {
        let pool = Pool::new(2).unwrap();
        let caller = std::thread::current().id();
        let done = AtomicUsize::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let inside = AtomicUsize::new(0);
            pool.run(&|| {
                inside.fetch_add(1, Ordering::SeqCst);
                while inside.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
                assert_ne!(std::thread::current().id(), caller, "from the caller");
                std::thread::yield_now();
                done.fetch_add(1, Ordering::SeqCst);
            });
        }));
        assert!(caught.is_err());
        assert_eq!(done.into_inner(), 2);
        assert_eq!(count_up(&pool, 100), 4_950);
    }
}
