//! Proxies that fail, panic, hang or are far too slow: whoever waits is told, its neighbours notice nothing, and all is as before once the
//! fault is gone. Every comparison is exact. No test depends on how fast the machine is: a round in time takes
//! microseconds, and limits are a thousand times that.

#[cfg(feature = "llama")]
mod decoding;
#[cfg(any(feature = "llama", feature = "llama-system"))]
mod hosts;

use proxytune::backend::Capabilities;
use proxytune::backend::faulty::{Fault, Faulty, Switch};
use proxytune::backend::toy::Toy;
use proxytune::pair::{CachedModel, History, Pair, Placement, Proxy, Runner, Sequence};
use proxytune::vocab::{Token, TokenMap};
use proxytune::{Error, Result};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const VOCAB: usize = 16;
const POISON: Token = 13;
const LIMIT: Duration = Duration::from_secs(1);
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const PLACEMENTS: [Placement; 5] =
    [Placement::Auto, Placement::AutoEarly, Placement::InTurn, Placement::SideBySide, Placement::Together];

fn toy(seed: u64) -> Toy {
    let capabilities =
        Capabilities { slots: 4, context: 96, batch: 64, vocab: VOCAB, truncate: true, fork: true };
    Toy::new(capabilities, seed)
}

/// Which proxy is faulty, where the passes run, and whether the runner has a thread.
#[derive(Debug, Clone, Copy)]
struct Setting {
    faulty: usize,
    placement: Placement,
    thread: bool,
}

fn settings() -> Vec<Setting> {
    let of = |placement| {
        [(0, false), (0, true), (1, false), (1, true)].map(|(faulty, thread)| Setting {
            faulty,
            placement,
            thread,
        })
    };
    PLACEMENTS.into_iter().flat_map(of).collect()
}

fn pair(faulty: usize, placement: Placement, limit: Option<Duration>) -> (Pair, Switch) {
    let switch = Switch::default();
    let proxy = |which: usize, name: &str| {
        let toy = toy(which as u64 + 1);
        let model = if which == faulty {
            CachedModel::new(name, Faulty::new(toy, switch.clone()))
        } else {
            CachedModel::new(name, toy)
        };
        Proxy { model, map: TokenMap::identity(VOCAB) }
    };
    (Pair::with_limit(proxy(0, "the tuned"), proxy(1, "the untuned"), placement, limit).unwrap(), switch)
}

impl Setting {
    fn runner(self, limit: Option<Duration>) -> (Runner, Switch) {
        let (pair, switch) = pair(self.faulty, self.placement, limit);
        let runner = if self.thread { Runner::new(pair).unwrap() } else { Runner::without_thread(pair) };
        if self.placement == Placement::AutoEarly && !self.thread {
            try_early(&runner);
        }
        (runner, switch)
    }
}

/// Makes steps until those of 1, 2 and 4 sequences are tried with the proxies begun early.
fn try_early(runner: &Runner) {
    for size in [1, 2, 4] {
        let mut sequences: Vec<_> = (0..size).map(|i| sequence(runner, &[i])).collect();
        let before = runner.stats().early_rounds();
        for _ in 0..6 {
            sequences.iter_mut().for_each(|s| s.announce().unwrap());
            runner.start();
            sequences.iter_mut().for_each(assert_right);
            sequences.iter_mut().for_each(|s| s.extend(&[1]));
        }
        assert_eq!(runner.stats().early_rounds(), before + 1);
    }
}

fn sequence(runner: &Runner, history: &[Token]) -> Sequence {
    runner.sequence(History::new(history.to_vec(), None), 1.0)
}

fn assert_right(sequence: &mut Sequence) {
    let history = sequence.history().tokens().to_vec();
    let [tuned, untuned] = [1, 2].map(|seed| toy(seed).logits_after(&history));
    let expected: Vec<f32> = tuned.into_iter().zip(untuned).map(|(t, u)| t - u).collect();
    assert_eq!(sequence.offset().unwrap(), expected);
}

fn is_late<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Timeout { .. }))
}

/// Runs it for every setting at once: most of them wait.
fn for_all(test: impl Fn(Setting) + Sync) {
    thread::scope(|scope| {
        for setting in settings() {
            let test = &test;
            scope.spawn(move || test(setting));
        }
    });
}

/// Asks until the proxies answer again.
fn recover(sequence: &mut Sequence) {
    let begin = Instant::now();
    while let Err(error) = sequence.offset() {
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(begin.elapsed() < PATIENCE, "{error}");
        thread::yield_now();
    }
    assert_right(sequence);
}

#[test]
fn a_fault_stays_with_the_request_that_causes_it() {
    let faults = [
        (Fault::Fail, "a failure on command"),
        (Fault::Nan, "all logits of a row are NaN"),
        (Fault::Short, "a row of 15 logits, 16 were expected"),
        (Fault::Panic, "a panic: a panic on command"),
    ];
    for_all(|setting| {
        for (fault, words) in faults {
            let (runner, switch) = setting.runner(None);
            switch.set_for(fault, POISON);
            let mut neighbours: Vec<_> = (0..3).map(|i| sequence(&runner, &[i, 1])).collect();
            let mut victim = sequence(&runner, &[7, 1]);
            for step in 0..4 {
                victim.announce().unwrap();
                neighbours.iter_mut().for_each(|s| s.announce().unwrap());
                runner.start();
                neighbours.iter_mut().for_each(assert_right);
                let failed = step == 2;
                let outcome = victim.offset().map(drop);
                assert_eq!(outcome.is_err(), failed, "{setting:?}: {outcome:?}");
                if let Err(error) = outcome {
                    assert!(error.to_string().contains(words), "{error}");
                    victim.rollback(1);
                }
                assert_right(&mut victim);
                neighbours.iter_mut().for_each(|s| s.extend(&[5]));
                victim.extend(&[if step == 1 { POISON } else { 6 }]);
            }
            assert_eq!(runner.stats().failures(), 1);
        }
    });
}

#[test]
fn a_single_fault_of_a_shared_pass_is_nobodys() {
    for_all(|setting| {
        for fault in [Fault::Fail, Fault::Nan, Fault::Short, Fault::Panic] {
            let (runner, switch) = setting.runner(None);
            let mut sequences: Vec<_> = (0..4).map(|i| sequence(&runner, &[i, 1])).collect();
            switch.set_once(fault);
            sequences.iter_mut().for_each(|s| s.announce().unwrap());
            runner.start();
            sequences.iter_mut().for_each(assert_right);
            assert_eq!(runner.stats().failures(), 0);
        }
    });
}

#[test]
fn faults_that_last_end_with_the_fault() {
    for_all(|setting| {
        for fault in [Fault::Fail, Fault::Nan, Fault::Short, Fault::Panic] {
            let (runner, switch) = setting.runner(Some(PATIENCE));
            switch.set(fault);
            for i in 0..20 {
                let mut s = sequence(&runner, &[i, 1]);
                assert!(matches!(s.offset(), Err(Error::Engine { .. })));
            }
            assert_eq!(runner.stats().failures(), 20);
            switch.set(Fault::None);
            for i in 0..20 {
                assert_right(&mut sequence(&runner, &[i, 1]));
            }
        }
    });
}

#[test]
fn a_proxy_that_hangs_costs_one_wait_and_comes_back() {
    for_all(|setting| {
        let (runner, switch) = setting.runner(Some(LIMIT));
        let mut sequences: Vec<_> = (0..3).map(|i| sequence(&runner, &[i, 1])).collect();
        sequences.iter_mut().for_each(assert_right);
        sequences.iter_mut().for_each(|s| s.extend(&[2]));

        switch.set(Fault::Hang);
        sequences.iter_mut().for_each(|s| s.announce().unwrap());
        runner.start();
        let error = sequences[0].offset().map(drop).unwrap_err();
        let name = ["the tuned", "the untuned"][setting.faulty];
        assert_eq!(
            error.to_string(),
            format!(
                "{name}: no answer within 1 s; nothing waits for it before it has answered (--proxy-timeout)"
            )
        );
        assert!(sequences[1..].iter_mut().all(|s| is_late(s.offset())));
        // The circuit is open: no pass is asked for any more. 300 waits would take five minutes.
        let (passes, begin) = (switch.passes(), Instant::now());
        for i in 0..300 {
            let mut passer_by = sequence(&runner, &[9, i % 8]);
            assert!(is_late(passer_by.offset()));
        }
        assert!(begin.elapsed() < PATIENCE);
        assert_eq!(switch.passes(), passes);
        assert_eq!((runner.stats().late(), runner.stats().failures()), (1, 303));

        switch.set(Fault::None);
        recover(&mut sequences[0]);
        sequences.iter_mut().for_each(assert_right);
        // More than there are slots, each twice.
        let mut more: Vec<_> = (0..9).map(|i| sequence(&runner, &[i, 1, 2, 3])).collect();
        more.iter_mut().for_each(assert_right);
        more.iter_mut().for_each(|s| s.extend(&[4]));
        more.iter_mut().for_each(assert_right);
        assert_eq!(runner.stats().late(), 1);
    });
}

#[test]
fn threads_that_wait_together_wait_once() {
    for thread in [false, true] {
        let (runner, switch) =
            Setting { faulty: 0, placement: Placement::InTurn, thread }.runner(Some(LIMIT));
        switch.set(Fault::Hang);
        let begin = Instant::now();
        thread::scope(|scope| {
            for i in 0..64 {
                let mut s = sequence(&runner, &[i % 8, 1, i / 8]);
                scope.spawn(move || assert!(is_late(s.offset())));
            }
        });
        assert!(begin.elapsed() < PATIENCE && runner.stats().late() == 1);
        switch.set(Fault::None);
    }
}

#[test]
fn a_proxy_that_is_slow_is_waited_for_within_the_limit() {
    for_all(|setting| {
        for limit in [None, Some(PATIENCE)] {
            let (runner, switch) = setting.runner(limit);
            switch.set(Fault::Slow(Duration::from_millis(20)));
            assert_right(&mut sequence(&runner, &[1, 2, 3]));
            assert_eq!(runner.stats().late(), 0);
        }
    });
}

#[test]
fn a_proxy_that_is_always_too_slow_is_asked_less_and_less() {
    let setting = Setting { faulty: 1, placement: Placement::Together, thread: true };
    let (runner, switch) = setting.runner(Some(Duration::from_millis(20)));
    switch.set(Fault::Slow(Duration::from_millis(60)));
    let mut s = sequence(&runner, &[1, 2]);
    let begin = Instant::now();
    let mut steps = 0;
    while runner.stats().late() < 4 {
        assert!(is_late(s.offset()) && begin.elapsed() < PATIENCE);
        s.extend(&[3]);
        s.rollback(1);
        steps += 1;
    }
    // Rests of 1, 3 and 7 limits lie between: nearly all steps found the circuit open.
    assert!(steps > 8, "{steps} steps, 4 of which waited");
}

#[test]
fn nothing_waits_at_the_end_and_what_hung_is_freed_once_it_ends() {
    for_all(|setting| {
        let (runner, switch) = setting.runner(Some(LIMIT));
        switch.set(Fault::Hang);
        let mut s = sequence(&runner, &[1]);
        assert!(is_late(s.offset()));
        let (done, finished) = mpsc::channel();
        thread::spawn(move || {
            drop(runner);
            drop(s);
            done.send(()).unwrap();
        });
        finished.recv_timeout(PATIENCE).expect("a hanging proxy holds up the end");
        assert_eq!(switch.holders(), 2, "the pass still runs");
        switch.set(Fault::None);
        let begin = Instant::now();
        while switch.holders() > 1 {
            assert!(begin.elapsed() < PATIENCE, "the model is never freed");
            thread::yield_now();
        }
    });
}
