//! Channels, locks and threads of the runner: the system's, or with `--cfg shuttle` those of a scheduler that tries many orders
//! of events (`tests/interleavings.rs`).

#[cfg(not(shuttle))]
pub use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
#[cfg(not(shuttle))]
pub use std::{
    sync::{Arc, Mutex, PoisonError, TryLockError},
    thread,
};

#[cfg(shuttle)]
pub use checked::{Receiver, Sender, bounded, unbounded};
#[cfg(shuttle)]
pub use {
    crossbeam_channel::{RecvTimeoutError, TryRecvError},
    shuttle::{
        sync::{Arc, Mutex},
        thread,
    },
    std::sync::{PoisonError, TryLockError},
};

#[cfg(shuttle)]
mod checked {
    //! As much of crossbeam's channels as is used here, over locks that the scheduler knows. None has a bound that matters:
    //! nobody sends to a bounded channel more than it holds.

    use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError};
    use shuttle::rand::Rng;
    use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
    use std::collections::VecDeque;
    use std::time::Instant;

    struct Channel<T> {
        state: Mutex<State<T>>,
        changed: Condvar,
    }

    struct State<T> {
        queue: VecDeque<T>,
        senders: usize,
        received: bool,
    }

    impl<T> Channel<T> {
        fn lock(&self) -> MutexGuard<'_, State<T>> {
            self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    pub struct Sender<T>(Arc<Channel<T>>);
    pub struct Receiver<T>(Arc<Channel<T>>);

    pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let state = State { queue: VecDeque::new(), senders: 1, received: true };
        let channel = Arc::new(Channel { state: Mutex::new(state), changed: Condvar::new() });
        (Sender(channel.clone()), Receiver(channel))
    }

    pub fn bounded<T>(_: usize) -> (Sender<T>, Receiver<T>) {
        unbounded()
    }

    impl<T> Sender<T> {
        pub fn send(&self, message: T) -> Result<(), SendError<T>> {
            let mut state = self.0.lock();
            if !state.received {
                return Err(SendError(message));
            }
            state.queue.push_back(message);
            self.0.changed.notify_all();
            Ok(())
        }

        pub fn len(&self) -> usize {
            self.0.lock().queue.len()
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.lock().senders += 1;
            Self(self.0.clone())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.lock().senders -= 1;
            self.0.changed.notify_all();
        }
    }

    impl<T> Receiver<T> {
        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut state = self.0.lock();
            match state.queue.pop_front() {
                Some(message) => Ok(message),
                None if state.senders == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        pub fn recv(&self) -> Result<T, RecvError> {
            let mut state = self.0.lock();
            loop {
                match state.queue.pop_front() {
                    Some(message) => return Ok(message),
                    None if state.senders == 0 => return Err(RecvError),
                    None => state = self.0.changed.wait(state).unwrap_or_else(|p| p.into_inner()),
                }
            }
        }

        /// The clock is the scheduler's: any wait may be too long.
        pub fn recv_deadline(&self, _: Instant) -> Result<T, RecvTimeoutError> {
            if shuttle::rand::thread_rng().gen_bool(0.5) {
                return self.recv().map_err(|_| RecvTimeoutError::Disconnected);
            }
            self.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        }

        pub fn is_empty(&self) -> bool {
            self.0.lock().queue.is_empty()
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            let mut state = self.0.lock();
            state.received = false;
            // What nobody takes is freed now, as the replies in it tell those who wait for them.
            let rest = std::mem::take(&mut state.queue);
            drop(state);
            drop(rest);
        }
    }
}
