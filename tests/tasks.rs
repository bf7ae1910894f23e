//! The published forms of task files.
#![cfg(feature = "eval")]

use proxytune::eval::{Ask, Items, Kind, read};
use std::io::Write;

fn items(text: &str) -> (Kind, Items) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    read(file.path(), None, None).unwrap()
}

#[test]
fn truthfulqa_is_read_in_both_forms() {
    let document = r#"[
        {"question": "What?", "mc0_targets": {"no": 0, "yes": 1},
         "mc1_targets": {"yes": 1, "no": 0}, "mc2_targets": {"yes": 1, "indeed": 1, "no": 0}}
    ]"#;
    let lines = r#"{"question": "What?", "mc1_targets": {"choices": ["yes", "no"], "labels": [1, 0]}, "mc2_targets": {"choices": ["yes", "indeed", "no"], "labels": [1, 1, 0]}}"#;
    for text in [document, lines] {
        let (kind, Items::Questions(questions)) = items(text) else { panic!("questions") };
        assert_eq!(kind, Kind::TruthfulQa);
        let true_ones = |choices: &[proxytune::eval::Choice]| {
            let mut texts: Vec<_> = choices.iter().filter(|c| c.is_true).map(|c| c.text.clone()).collect();
            texts.sort();
            (texts, choices.len())
        };
        assert_eq!(true_ones(&questions[0].mc1), (vec!["yes".into()], 2));
        assert_eq!(true_ones(&questions[0].mc2), (vec!["indeed".into(), "yes".into()], 3));
    }
}

#[test]
fn triviaqa_is_read_in_both_forms() {
    let published = r#"{"Data": [{"Answer": {"Aliases": ["Sunset Bd"], "NormalizedAliases": ["sunset bd"],
        "Value": "Sunset Boulevard"}, "Question": "Which street?", "QuestionId": "tc_2"}], "Domain": "Web", "Version": 1.0}"#;
    let lines = "{\"question\": \"Which street?\", \"answer\": {\"value\": \"Sunset Boulevard\", \"aliases\": [\"Sunset Bd\"]}}\n\
                 {\"question\": \"Who?\", \"answer\": {\"value\": \"Nobody\", \"aliases\": []}}\n";
    let expected = Ask {
        question: "Which street?".into(),
        answers: vec!["Sunset Boulevard".into(), "Sunset Bd".into()],
    };
    for text in [published, lines] {
        let (kind, Items::Asks(asks)) = items(text) else { panic!("asks") };
        assert_eq!((kind, &asks[0]), (Kind::TriviaQa, &expected));
    }
    let verified = r#"{"Data": [{"Answer": {"Aliases": [], "HumanAnswers": ["Sunset"], "Value": "Boulevard"}, "Question": "?"}]}"#;
    let Items::Asks(asks) = items(verified).1 else { panic!("asks") };
    assert_eq!(asks[0].answers, ["Boulevard", "Sunset"], "what people said is right too");
}

#[test]
fn gsm8k_and_humaneval_are_told_by_their_fields() {
    let gsm = r##"{"question": "1+1?", "answer": "It is 2.\n#### 2"}"##;
    assert_eq!(items(gsm).0, Kind::Gsm8k);
    let human = r#"{"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "", "test": "def check(f):\n    pass"}"#;
    let (kind, Items::Problems(problems)) = items(human) else { panic!("problems") };
    assert_eq!((kind, problems[0].entry_point.as_str()), (Kind::HumanEval, "f"));
    // So does the mark that some editors put at the beginning.
    assert_eq!(items(&format!("\u{feff}{gsm}\n{gsm}")).1.len(), 2);
    // Blank lines and a missing one at the end do no harm.
    assert_eq!(items(&format!("\n{gsm}\n\n{gsm}")).1.len(), 2);
}
