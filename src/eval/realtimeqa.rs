//! Questions of the day with four choices, in the form in which RealTime QA is published (Kasai et al. 2022).

use super::record::{Field, string, wrong};
use serde_json::Value;

/// A question whose answer is one of a few choices, named by letters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pick {
    /// The question.
    pub question: String,
    /// The choices.
    pub choices: Vec<String>,
    /// Which of them are right.
    pub answers: Vec<usize>,
}

/// Letters there are.
const MOST_CHOICES: usize = 26;

impl Pick {
    /// The names of the choices: A, B, ….
    pub fn letters(&self) -> Vec<String> {
        (b'A'..=b'Z').take(self.choices.len()).map(|letter| char::from(letter).to_string()).collect()
    }

    /// How the question is put.
    pub fn prompt(&self) -> String {
        let choices = self.letters().into_iter().zip(&self.choices);
        let choices: String = choices.map(|(letter, choice)| format!("{letter}. {choice}\n")).collect();
        format!("Question: {}\n{choices}Answer:", self.question)
    }
}

/// `question_sentence`, `choices`, and `answer`: the places of the right ones, as texts or numbers.
pub(super) fn pick(record: &Value) -> Field<Pick> {
    let choices: Option<Vec<String>> = record["choices"]
        .as_array()
        .filter(|all| (2..=MOST_CHOICES).contains(&all.len()))
        .and_then(|all| all.iter().map(|choice| choice.as_str().map(String::from)).collect());
    let Some(choices) = choices else {
        return wrong("choices", record.get("choices"), "a list of 2 to 26 texts");
    };
    let place = |value: &Value| match value {
        Value::String(text) => text.trim().parse().ok(),
        other => usize::try_from(other.as_u64()?).ok(),
    };
    let answers: Option<Vec<usize>> = match record.get("answer") {
        Some(Value::Array(all)) => all.iter().map(place).collect(),
        Some(one) => place(one).map(|place| vec![place]),
        None => None,
    };
    let is_place = |all: &Vec<usize>| !all.is_empty() && all.iter().all(|&place| place < choices.len());
    let Some(answers) = answers.filter(is_place) else {
        return wrong(
            "answer",
            record.get("answer"),
            "the places of right choices, counted from 0, such as [\"2\"]",
        );
    };
    Ok(Pick { question: string(record, "question_sentence")?, choices, answers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_as_published_is_read_and_put_by_letters() {
        let record = json!({ "question_id": "20220610_0", "question_sentence": "Which?", "choices": ["x", "y", "z"],
                             "answer": ["2"], "evidence": "" });
        let read = pick(&record).unwrap();
        assert_eq!(
            (read.answers.as_slice(), read.letters()),
            ([2].as_slice(), ["A", "B", "C"].map(String::from).to_vec())
        );
        assert_eq!(read.prompt(), "Question: Which?\nA. x\nB. y\nC. z\nAnswer:");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |key: &str, value: Value| {
            let mut record = json!({ "question_sentence": "?", "choices": ["x", "y"], "answer": ["0"] });
            record[key] = value;
            pick(&record).unwrap_err().0
        };
        assert_eq!(with("choices", json!(["x"])), "choices");
        assert_eq!(with("answer", json!(["2"])), "answer");
        assert_eq!(with("answer", json!([])), "answer");
        assert_eq!(with("question_sentence", json!(1)), "question_sentence");
    }
}
