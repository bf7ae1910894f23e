//! The sequences of one request, told apart by what they have read.

use crate::combine::{Control, Logit, Shift};
use crate::error::{Error, Result};
use crate::pair::plan::common_prefix;
use crate::pair::{History, Runner, Sequence};
use crate::vocab::Token;

/// A request's sequences in an engine that hands over histories but no names: several choices of one prompt, or a text
/// that goes back and on another way.
///
/// A sequence is [taken](Self::take) by its history, used, and [put back](Self::put); so two histories of one batch
/// never get the same one. Whichever is taken, the offsets are right: the choice only decides what is found in the
/// proxies' caches.
pub struct Group<T = ()> {
    alpha: f32,
    control: Control,
    explains: bool,
    tuned_prompt: Option<Vec<Token>>,
    /// The host's prompt: the first history.
    prompt: Option<Vec<Token>>,
    idle: Vec<Member<T>>,
    most: usize,
    made: usize,
}

/// A sequence of a [`Group`].
pub struct Member<T = ()> {
    /// The sequence, with the history that it was taken for.
    pub sequence: Sequence,
    /// What the group's owner keeps with each sequence.
    pub state: T,
    /// Which of the group's sequences it is, counted from 0.
    pub number: usize,
    /// Tokens of that history. What the sequence has beyond them is a guess.
    read: usize,
    /// The offset for that history, where the sequence has gone on by a guess.
    offset: Vec<f32>,
    guessed: bool,
}

impl<T> Member<T> {
    /// Shifts the host's logits for the history that it was taken for, as [`Sequence::shift`].
    ///
    /// # Errors
    /// As [`Sequence::shift`].
    pub fn shift<L: Logit>(&mut self, logits: &mut [L]) -> Result<Shift> {
        if self.guessed {
            return self.sequence.shift_at(logits, &self.offset, self.read);
        }
        self.sequence.shift(logits)
    }

    /// What the proxies said at the history that it was taken for, as [`Sequence::log_probabilities`]; once it has been
    /// [shifted](Self::shift).
    pub fn log_probabilities(&self) -> Option<&[f32]> {
        if self.guessed {
            return self.sequence.log_probabilities_in(&self.offset, 0);
        }
        self.sequence.log_probabilities()
    }

    /// Says which token will probably be next, so that the proxies can go ahead
    /// ([`Sequence::announce`]). The offset is kept, for an engine that asks once more for the same history.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn guess(&mut self, token: Token) -> Result<()> {
        self.guessed = self.guessed || self.sequence.take_offset(&mut self.offset);
        self.sequence.rollback(self.sequence.history().tokens().len() - self.read);
        self.sequence.extend(&[token]);
        self.sequence.announce()
    }
}

impl<T: Default> Group<T> {
    /// A request of at most `choices` texts at once. `tuned_prompt`: the prompt as the tuned proxy reads it, in its own
    /// tokens, where that is another one.
    pub fn new(alpha: f32, tuned_prompt: Option<Vec<Token>>, choices: usize) -> Self {
        let control = Control::default();
        let (idle, most) = (Vec::new(), choices.max(1));
        Self { alpha, control, explains: false, tuned_prompt, prompt: None, idle, most, made: 0 }
    }

    /// With schedule and guards.
    pub fn with_control(self, control: Control) -> Self {
        Self { control, ..self }
    }

    /// Whose sequences ask for the proxies' [log-probabilities](Member::log_probabilities).
    pub fn with_explanations(self, explains: bool) -> Self {
        Self { explains, ..self }
    }

    /// The weight of the shift.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// The sequence that has come to this history, or a new one. The first history is the prompt.
    ///
    /// # Errors
    /// When the history does not begin with the prompt.
    pub fn take(&mut self, runner: &Runner, history: &[Token]) -> Result<Member<T>> {
        let prompt = self.prompt.get_or_insert_with(|| history.to_vec());
        if !history.starts_with(prompt) {
            let given = "a history that begins otherwise than the request's first one";
            let expected =
                "the prompt and what was generated; is the engine's prefix cache on? Switch it off";
            return Err(Error::invalid("history", given, expected));
        }
        let same = |m: &Member<T>| common_prefix(m.sequence.history().tokens(), history);
        let best = self.idle.iter().map(same).enumerate().max_by_key(|&(_, shared)| shared);
        // One that would have to go back may still be wanted where it is, as long as there is room for another.
        let full = self.idle.len() >= self.most;
        let mut member = match best.filter(|&(place, shared)| full || shared >= self.idle[place].read) {
            Some((place, _)) => self.idle.swap_remove(place),
            None => {
                let own = History::new(prompt.clone(), self.tuned_prompt.clone());
                let (mut sequence, number) = (runner.sequence(own, self.alpha), self.made);
                sequence.set_control(self.control, prompt.len());
                if self.explains {
                    sequence.explain();
                }
                self.made += 1;
                Member { sequence, state: T::default(), number, read: 0, offset: Vec::new(), guessed: false }
            }
        };
        let asked_again = member.guessed && member.read == history.len() && same(&member) == history.len();
        if !asked_again {
            member.sequence.sync(history)?;
            member.guessed = false;
            member.read = history.len();
        }
        Ok(member)
    }

    /// Gives a sequence back.
    pub fn put(&mut self, member: Member<T>) {
        self.idle.push(member);
    }
}
