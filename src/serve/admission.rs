//! Who may run now, who waits, and who is turned away.

use super::error::{ApiError, ApiResult};
use axum::http::StatusCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Lets as many sequences into the engine as it can run.
///
/// The engine has a limit of its own, but one that it passes by when nothing runs: all that waits is started then.
pub struct Admission {
    places: Arc<Semaphore>,
    sequences: usize,
    waiting: AtomicUsize,
    most_waiting: usize,
    closed: watch::Sender<bool>,
}

/// A sequence's place in the engine; dropping it gives it back.
pub struct Place(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Admission {
    /// `sequences` run at once, `most_waiting` requests wait for their turn.
    pub fn new(sequences: usize, most_waiting: usize) -> Self {
        let (places, closed) = (Arc::new(Semaphore::new(sequences)), watch::Sender::new(false));
        Self { places, sequences, waiting: AtomicUsize::new(0), most_waiting, closed }
    }

    /// Waits for a place for a new request, first come, first served. Who no longer waits has only to drop this.
    ///
    /// # Errors
    /// 429 where too many wait already, 503 when the server is about to stop.
    pub async fn enter(&self) -> ApiResult<Place> {
        let mut closed = self.closed.subscribe();
        if *closed.borrow_and_update() {
            return Err(stopping());
        }
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(Place(place));
        }
        let _waits = self.wait()?;
        tokio::select! {
            place = self.another() => place,
            _ = closed.changed() => Err(stopping()),
        }
    }

    /// Waits for another place for a request that has entered, also while the server stops.
    pub async fn another(&self) -> ApiResult<Place> {
        self.places.clone().acquire_owned().await.map(Place).map_err(|_| stopping())
    }

    fn wait(&self) -> ApiResult<Waits<'_>> {
        let waits = Waits(&self.waiting);
        if self.waiting.fetch_add(1, Relaxed) >= self.most_waiting {
            let message = format!("{} requests wait already; try again later", self.most_waiting);
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).code("too_many_requests"));
        }
        Ok(waits)
    }

    /// Lets no new request in any more; who waits is turned away.
    pub fn close(&self) {
        self.closed.send_replace(true);
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
        let admission = Arc::new(Admission::new(1, 1));
        let one = admission.enter().await.unwrap();
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { admission.enter().await.map(drop) }
        });
        while admission.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(status(admission.enter().await), Some(429));
        assert_eq!((admission.running(), admission.waiting()), (1, 1));
        drop(one);
        assert!(waiting.await.unwrap().is_ok());
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_when_the_server_stops_is_told_and_who_runs_goes_on() {
        let admission = Arc::new(Admission::new(1, 8));
        let one = admission.enter().await.unwrap();
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { status(admission.enter().await) }
        });
        while admission.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        admission.close();
        assert_eq!(waiting.await.unwrap(), Some(503));
        assert_eq!(status(admission.enter().await), Some(503));
        drop(one);
        assert!(admission.another().await.is_ok());
    }
}
