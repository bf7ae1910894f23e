//! A backend that fails on command around one that does not, for tests.

use super::{Backend, Capabilities, Span};
use crate::error::{Error, Result};
use crate::vocab::Token;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What goes wrong in a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The engine says that it failed, after it has changed its slots.
    Fail,
    /// All logits are NaN.
    Nan,
    /// Rows are too short.
    Short,
    /// The engine's code panics, after it has changed its slots.
    Panic,
    /// The pass takes so much longer.
    Slow(Duration),
    /// The pass does not end before the fault is another one.
    Hang,
}

/// Sets what goes wrong, from anywhere and also during a pass.
#[derive(Debug, Clone, Default)]
pub struct Switch(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    fault: Fault,
    /// Only passes with this token go wrong.
    token: Option<Token>,
    /// How often still; `None`: always.
    times: Option<u32>,
    hanging: bool,
    passes: u64,
}

impl Switch {
    /// From now on every pass goes wrong like this; one that hangs goes on.
    pub fn set(&self, fault: Fault) {
        self.change(|state| *state = State { fault, passes: state.passes, ..State::default() });
    }

    /// Only passes that read this token go wrong.
    pub fn set_for(&self, fault: Fault, token: Token) {
        self.change(|state| {
            *state = State { fault, token: Some(token), passes: state.passes, ..State::default() };
        });
    }

    /// The next pass goes wrong and no other.
    pub fn set_once(&self, fault: Fault) {
        self.change(|state| {
            *state = State { fault, times: Some(1), passes: state.passes, ..State::default() };
        });
    }

    /// A switch that goes by a file: `fail`, `nan`, `short`, `panic`, `hang` or `slow MS` in it, then `once` or `at TOKEN`
    /// for [`set_once`](Self::set_once) or [`set_for`](Self::set_for); anything else, or no file, for none.
    pub fn of_file(path: PathBuf) -> Self {
        let switch = Self::default();
        let follower = switch.clone();
        std::thread::spawn(move || {
            let mut last = String::new();
            loop {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                if text != last {
                    follower.set_by(&text);
                    last = text;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        switch
    }

    fn set_by(&self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (fault, rest) = match &words[..] {
            ["fail", rest @ ..] => (Fault::Fail, rest),
            ["nan", rest @ ..] => (Fault::Nan, rest),
            ["short", rest @ ..] => (Fault::Short, rest),
            ["panic", rest @ ..] => (Fault::Panic, rest),
            ["hang", rest @ ..] => (Fault::Hang, rest),
            ["slow", ms, rest @ ..] => match ms.parse() {
                Ok(ms) => (Fault::Slow(Duration::from_millis(ms)), rest),
                Err(_) => (Fault::None, rest),
            },
            _ => (Fault::None, &[][..]),
        };
        match (rest, rest.last().and_then(|token| token.parse().ok())) {
            (["once"], _) => self.set_once(fault),
            (["at", _], Some(token)) => self.set_for(fault, token),
            ([], _) => self.set(fault),
            _ => self.set(Fault::None),
        }
    }

    /// Forward passes so far, those that went wrong included.
    pub fn passes(&self) -> u64 {
        self.lock().passes
    }

    /// Backends that it is the switch of, and copies of it: falls when a backend is freed.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault of a pass that begins; waits where it hangs.
    fn begin(&self, spans: &[Span<'_>]) -> Fault {
        let mut state = self.lock();
        state.passes += 1;
        let concerns = |token| spans.iter().any(|span| span.tokens.contains(&token));
        if state.fault == Fault::None || state.times == Some(0) || !state.token.is_none_or(concerns) {
            return Fault::None;
        }
        state.times = state.times.map(|times| times - 1);
        let fault = state.fault;
        if fault == Fault::Hang {
            state.hanging = true;
            drop(self.0.1.wait_while(state, |state| state.hanging));
        }
        fault
    }
}

/// See the [module](self).
pub struct Faulty<B> {
    inner: B,
    switch: Switch,
    fault: Fault,
    nan: Vec<f32>,
}

impl<B: Backend> Faulty<B> {
    /// Works as `inner` does, as far as the switch lets it.
    pub fn new(inner: B, switch: Switch) -> Self {
        let nan = vec![f32::NAN; inner.capabilities().vocab];
        Self { inner, switch, fault: Fault::None, nan }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> Result<()> {
        self.fault = self.switch.begin(spans);
        if let Fault::Slow(time) = self.fault {
            std::thread::sleep(time);
        }
        self.inner.forward(spans)?;
        match self.fault {
            Fault::Fail => Err(Error::engine("faulty", "a failure on command")),
            Fault::Panic => panic!("a panic on command"),
            _ => Ok(()),
        }
    }

    fn logits(&self, row: usize) -> &[f32] {
        match self.fault {
            Fault::Nan => &self.nan,
            Fault::Short => &self.inner.logits(row)[1..],
            _ => self.inner.logits(row),
        }
    }

    fn logits_mut(&mut self, row: usize) -> &mut [f32] {
        match self.fault {
            Fault::Nan => &mut self.nan,
            Fault::Short => &mut self.inner.logits_mut(row)[1..],
            _ => self.inner.logits_mut(row),
        }
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<()> {
        self.inner.truncate(slot, len)
    }

    fn fork(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.inner.fork(from, to, len)
    }

    fn clear(&mut self, slot: usize) {
        self.inner.clear(slot);
    }

    fn rest(&mut self) {
        self.inner.rest();
    }

    fn set_alone(&mut self, alone: bool) {
        self.inner.set_alone(alone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_goes_wrong_and_when() {
        let said = |text: &str| {
            let switch = Switch::default();
            switch.set_by(text);
            let state = switch.lock();
            (state.fault, state.times, state.token)
        };
        let slow = Fault::Slow(Duration::from_millis(20));
        assert_eq!(said("hang\n"), (Fault::Hang, None, None));
        assert_eq!(said("slow 20"), (slow, None, None));
        assert_eq!(said("slow 20 once"), (slow, Some(1), None));
        assert_eq!(said("fail at 13"), (Fault::Fail, None, Some(13)));
        for nothing in ["", "none", "slow", "slow down", "fail at", "fail at once", "fail twice"] {
            assert_eq!(said(nothing), (Fault::None, None, None), "{nothing}");
        }
    }
}
