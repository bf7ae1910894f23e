//! When a request that failed is sent again.

use crate::decode::accept::Dice;
use std::time::{Duration, SystemTime};

/// The longest wait that an API may ask for.
const LONGEST: Duration = Duration::from_secs(120);
const FIRST: Duration = Duration::from_millis(250);

/// Waits that double from try to try, each somewhere between half of that and all of it, so that many clients do not come
/// back at once.
#[derive(Debug)]
pub struct Backoff {
    tries: u32,
    most: u32,
    dice: Dice,
}

impl Backoff {
    pub fn new(most: u32) -> Self {
        Self { tries: 0, most, dice: Dice::new(None) }
    }

    /// How long to wait before the next try; `None` when there is none: they are used up, or the API wants too long a wait.
    pub fn next(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        if self.tries >= self.most || retry_after.is_some_and(|wait| wait > LONGEST) {
            return None;
        }
        let full = FIRST * 2u32.saturating_pow(self.tries).min(64);
        self.tries += 1;
        let wait = full.mul_f64(0.5 + 0.5 * self.dice.roll());
        Some(retry_after.map_or(wait, |asked| asked + wait.min(Duration::from_millis(500))))
    }
}

/// Whether an answer with this status may be another one later.
pub fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 409 | 425 | 429 | 500 | 502 | 503 | 504 | 529)
}

/// A `Retry-After`: seconds, or a date.
pub fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    match value.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            Some(Duration::from_secs_f64(seconds.min(1e9)))
        }
        Ok(_) => None,
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let mut backoff = Backoff::new(3);
        let waits: Vec<_> = std::iter::from_fn(|| backoff.next(None)).collect();
        assert_eq!(waits.len(), 3);
        for (wait, full) in waits.iter().zip([250, 500, 1000]) {
            assert!((full / 2..=full).contains(&wait.as_millis()), "{waits:?}");
        }
    }

    #[test]
    fn what_the_api_asks_for_is_waited_unless_it_is_too_long() {
        let mut backoff = Backoff::new(3);
        assert!(backoff.next(Some(Duration::from_secs(7))).unwrap() >= Duration::from_secs(7));
        assert_eq!(backoff.next(Some(Duration::from_secs(3600))), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 3 "), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("0.5"), Some(Duration::from_millis(500)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        assert!((28..=30).contains(&retry_after(&date).unwrap().as_secs()));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert!(["-1", "nan", "soon", ""].iter().all(|v| retry_after(v).is_none()));
    }
}
