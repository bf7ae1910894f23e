//! How long a round may keep its caller waiting, and what follows once one took longer.

use std::time::{Duration, Instant};

/// Counts rounds that were late, and says when the proxies may be asked again.
///
/// After a round that was late nothing waits for the proxies before they have answered it. Where they are late again and
/// again they are left alone after that as well, twice as long each time: proxies that are always too slow then cost a
/// wait now and then instead of one a token.
#[derive(Debug)]
pub(super) struct Breaker {
    limit: Option<Duration>,
    /// Rounds in a row that were late.
    strikes: u32,
    late: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Rounds run.
    Closed,
    /// One was late and has not ended.
    Waiting,
    /// It has ended; until then nothing is asked for.
    Resting(Instant),
}

impl Breaker {
    /// The longest rest: the limit doubled so many times.
    const MOST_DOUBLINGS: u32 = 6;

    /// `None`: a round may take any time.
    pub fn new(limit: Option<Duration>) -> Self {
        Self { limit, strikes: 0, late: 0, state: State::Closed }
    }

    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// When a round that is waited for from `now` on is late.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.limit.and_then(|limit| now.checked_add(limit))
    }

    /// A round has ended in time.
    pub fn in_time(&mut self) {
        self.strikes = 0;
    }

    /// A round has not.
    pub fn late(&mut self) {
        self.strikes = self.strikes.saturating_add(1);
        self.late += 1;
        self.state = State::Waiting;
    }

    /// Whether a round may begin. `answered` says whether the one that was late has ended meanwhile.
    pub fn allows(&mut self, now: Instant, answered: impl FnOnce() -> bool) -> bool {
        if matches!(self.state, State::Waiting) && answered() {
            let doublings = self.strikes.saturating_sub(1).min(Self::MOST_DOUBLINGS);
            let rest = self.limit.unwrap_or_default() * ((1 << doublings) - 1);
            self.state = State::Resting(now + rest);
        }
        if matches!(self.state, State::Resting(until) if now >= until) {
            self.state = State::Closed;
        }
        matches!(self.state, State::Closed)
    }

    /// Rounds that were late so far.
    pub fn count(&self) -> u64 {
        self.late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_runs_before_the_late_round_has_ended() {
        let (mut breaker, now) = (Breaker::new(Some(Duration::from_secs(2))), Instant::now());
        assert!(breaker.allows(now, || unreachable!("nobody is late")));
        breaker.late();
        assert!(!breaker.allows(now + Duration::from_secs(1000), || false));
        assert!(breaker.allows(now, || true) && breaker.allows(now, || false));
    }

    #[test]
    fn rests_grow_with_rounds_that_are_late_in_a_row_up_to_a_bound() {
        let limit = Duration::from_secs(2);
        let (mut breaker, begin) = (Breaker::new(Some(limit)), Instant::now());
        for limits in [0, 1, 3, 7, 15, 31, 63, 63, 63] {
            breaker.late();
            let rest = limit * limits;
            assert_eq!(breaker.allows(begin, || true), limits == 0);
            assert_eq!(breaker.allows(begin + rest / 2, || true), limits == 0);
            assert!(breaker.allows(begin + rest, || true));
        }
        breaker.in_time();
        breaker.late();
        assert!(breaker.allows(begin, || true));
        assert_eq!(breaker.count(), 10);
    }

    #[test]
    fn without_a_limit_there_is_no_deadline() {
        assert_eq!(Breaker::new(None).deadline(Instant::now()), None);
        // Nor with one beyond the clock.
        assert_eq!(Breaker::new(Some(Duration::MAX)).deadline(Instant::now()), None);
    }
}
