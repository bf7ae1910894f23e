//! Who may run now, who waits, and who is turned away.

use super::error::{ApiError, ApiResult};
use axum::http::StatusCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lets as many sequences into the engine as it is meant to run.
///
/// The engine has a limit of its own, but one that it passes by when nothing runs: all that waits is started then.
pub struct Admission {
    places: Arc<Semaphore>,
    sequences: usize,
    waiting: AtomicUsize,
    most_waiting: usize,
}

/// A request's places; dropping it gives them back.
pub struct Ticket {
    _places: OwnedSemaphorePermit,
}

impl Admission {
    /// `sequences` run at once, `most_waiting` requests wait for their turn.
    pub fn new(sequences: usize, most_waiting: usize) -> Self {
        let places = Arc::new(Semaphore::new(sequences));
        Self { places, sequences, waiting: AtomicUsize::new(0), most_waiting }
    }

    /// Waits for places for `choices` sequences, first come, first served. Who no longer waits has only to drop this.
    ///
    /// # Errors
    /// 400 for more than ever run at once, 429 where too many wait already, 503 when the server is about to stop.
    pub async fn enter(&self, choices: usize) -> ApiResult<Ticket> {
        if choices > self.sequences {
            return Err(ApiError::invalid("n", choices, &format!("1 to {}", self.sequences)));
        }
        let wanted = choices.max(1) as u32;
        if let Ok(places) = self.places.clone().try_acquire_many_owned(wanted) {
            return Ok(Ticket { _places: places });
        }
        let _waits = self.wait()?;
        match self.places.clone().acquire_many_owned(wanted).await {
            Ok(places) => Ok(Ticket { _places: places }),
            Err(_) => Err(stopping()),
        }
    }

    fn wait(&self) -> ApiResult<Waits<'_>> {
        if self.places.is_closed() {
            return Err(stopping());
        }
        let waits = Waits(&self.waiting);
        if self.waiting.fetch_add(1, Relaxed) >= self.most_waiting {
            let message = format!("{} requests wait already; try again later", self.most_waiting);
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).code("too_many_requests"));
        }
        Ok(waits)
    }

    /// Lets nobody in any more; who waits is turned away.
    pub fn close(&self) {
        self.places.close();
    }

    /// Sequences in the engine now.
    pub fn running(&self) -> usize {
        self.sequences - self.places.available_permits()
    }

    /// Requests that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

/// Someone who waits, or who was counted and is turned away.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn stopping() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is about to stop").code("stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status<T>(entered: ApiResult<T>) -> Option<u16> {
        entered.err().map(|e| e.status.as_u16())
    }

    #[tokio::test]
    async fn one_too_many_is_turned_away_and_the_next_comes_when_a_place_is_free() {
        let admission = Arc::new(Admission::new(2, 1));
        let both = admission.enter(2).await.unwrap();
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { admission.enter(1).await.map(drop) }
        });
        while admission.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(status(admission.enter(1).await), Some(429));
        assert_eq!((admission.running(), admission.waiting()), (2, 1));
        drop(both);
        assert!(waiting.await.unwrap().is_ok());
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
        assert_eq!(status(admission.enter(3).await), Some(400));
    }

    #[tokio::test]
    async fn who_waits_when_the_server_stops_is_told() {
        let admission = Arc::new(Admission::new(1, 8));
        let one = admission.enter(1).await.unwrap();
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { status(admission.enter(1).await) }
        });
        while admission.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        admission.close();
        assert_eq!(waiting.await.unwrap(), Some(503));
        assert_eq!(status(admission.enter(1).await), Some(503));
        drop(one);
    }
}
