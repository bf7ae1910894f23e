//! What engines' adapters make of it.

use super::*;
use proxytune::config::OnError;
use proxytune::host::requests::{Logits, Outcome, RequestId, Requests, Row, TunedPrompt};

struct Place {
    request: RequestId,
    history: Vec<Token>,
    logits: Vec<f32>,
    outcome: Option<Outcome>,
}

impl Row for &mut Place {
    fn request(&self) -> RequestId {
        self.request
    }
    fn history(&self) -> &[Token] {
        &self.history
    }
    fn logits(&mut self) -> Logits<'_> {
        Logits::F32(&mut self.logits)
    }
    fn report(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

#[test]
fn batches_of_rows_go_on_unshifted_while_a_proxy_hangs() {
    for (on_error, expected) in [(OnError::Host, Outcome::Unshifted), (OnError::Stop, Outcome::Stop)] {
        let setting = Setting { faulty: 0, placement: Placement::Auto, thread: false };
        let (runner, switch) = setting.runner(Some(LIMIT));
        let mut requests = Requests::new(runner, 1.0, on_error, |_| vec![]);
        let row: Vec<f32> = (0..VOCAB).map(|i| i as f32).collect();
        let apply = |requests: &mut Requests, drafted: &[Token]| {
            let history = [&[1, 2][..], drafted].concat();
            let place = |len| Place {
                request: 1,
                history: history[..len].to_vec(),
                logits: row.clone(),
                outcome: None,
            };
            let mut places: Vec<_> = (2..=history.len()).map(place).collect();
            requests.apply(&mut places.iter_mut().collect::<Vec<_>>()).unwrap();
            places
        };
        requests.add(1, None, TunedPrompt::Host, None).unwrap();
        let quiet = apply(&mut requests, &[3]);
        assert!(quiet.iter().all(|p| p.outcome == Some(Outcome::Shifted)));

        switch.set(Fault::Hang);
        for place in apply(&mut requests, &[4, 5]) {
            // Where a token was known already, it is no matter what hangs.
            let known = place.history.len() == 2 && place.outcome == Some(Outcome::Shifted);
            assert!(known || place.outcome == Some(expected) && place.logits == row);
        }
        let said = requests.failure(1).unwrap().unwrap().to_string();
        assert!(said.contains("no answer within 1 s"), "{said}");
        assert!(requests.stats().failed >= 2);

        switch.set(Fault::None);
        let begin = Instant::now();
        let again = loop {
            let places = apply(&mut requests, &[3]);
            if places.iter().all(|p| p.outcome == Some(Outcome::Shifted)) {
                break places;
            }
            assert!(begin.elapsed() < PATIENCE);
        };
        let logits = |places: &[Place]| places.iter().map(|p| p.logits.clone()).collect::<Vec<_>>();
        assert_eq!(logits(&again), logits(&quiet));
    }
}
