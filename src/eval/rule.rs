//! When a generated answer counts as right.

use super::task::Kind;
use crate::error::{Error, Result};
use regex::Regex;

/// How an answer is compared with those that are right.
#[derive(Debug, Clone)]
pub enum Rule {
    /// As text: case, punctuation, articles and spacing aside (Joshi et al. 2017).
    Exact,
    /// As a number: the one after `####` where there is one (Cobbe et al. 2021), else the last.
    Number,
    /// The first group of the last match, or all of it without groups.
    Pattern(Box<Regex>),
}

impl Rule {
    /// From the command line.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no regular expression.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "exact" => Ok(Self::Exact),
            "number" => Ok(Self::Number),
            pattern => match Regex::new(pattern) {
                Ok(regex) => Ok(Self::Pattern(Box::new(regex))),
                Err(e) => {
                    let reason = e.to_string().lines().last().unwrap_or_default().to_owned();
                    let expected = format!("exact, number, or a regular expression ({reason})");
                    Err(Error::invalid("--match", pattern, expected))
                }
            },
        }
    }

    /// The rule of a task, unless another is given.
    pub fn of(kind: Kind) -> Self {
        if kind == Kind::Gsm8k { Self::Number } else { Self::Exact }
    }

    /// What of a text is compared; `None` where it holds nothing of the kind.
    pub fn extract(&self, text: &str) -> Option<String> {
        match self {
            Self::Exact => Some(normal(text)),
            Self::Number => number(text),
            Self::Pattern(regex) => {
                let found = regex.captures_iter(text).last()?;
                let group = found.get(1).or_else(|| found.get(0))?;
                Some(group.as_str().trim().to_owned())
            }
        }
    }

    /// Whether an output is any of the answers. An answer in which a pattern finds nothing is taken as it stands.
    pub fn is_right(&self, output: &str, answers: &[String]) -> bool {
        let Some(given) = self.extract(output) else { return false };
        let is_it = |answer: &String| match (self.extract(answer), self) {
            (Some(expected), Self::Number) => same_number(&given, &expected),
            (Some(expected), _) => given == expected,
            (None, Self::Pattern(_)) => given == answer.trim(),
            (None, _) => false,
        };
        answers.iter().any(is_it)
    }
}

/// Lower case, without punctuation, articles and spare spaces.
fn normal(text: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() { c } else { ' ' };
    // An apostrophe joins: it's is its.
    let text: String =
        text.to_lowercase().chars().filter(|c| !matches!(c, '\'' | '’' | '´' | '`')).map(plain).collect();
    let words = || text.split_whitespace();
    let without: Vec<_> = words().filter(|word| !["a", "an", "the"].contains(word)).collect();
    // An answer may be an article, such as a blood group.
    if without.is_empty() { words().collect::<Vec<_>>().join(" ") } else { without.join(" ") }
}

fn number(text: &str) -> Option<String> {
    // What follows the mark is the answer; a text without it gives its last number.
    let marked = text.split_once("####").map(|(_, rest)| rest);
    let mut found = numbers(marked.unwrap_or(text));
    if marked.is_some() { found.next() } else { found.last() }
}

/// Numbers as people write them: sign, thousands' commas, decimals. Commas are left out.
fn numbers(text: &str) -> impl Iterator<Item = String> + '_ {
    static NUMBER: std::sync::LazyLock<Option<Regex>> =
        std::sync::LazyLock::new(|| Regex::new(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)").ok());
    NUMBER.iter().flat_map(move |regex| regex.find_iter(text)).map(|found| found.as_str().replace(',', ""))
}

fn same_number(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-6 * b.abs().max(1.0),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(rule: &str, output: &str, answers: &[&str]) -> bool {
        let answers: Vec<String> = answers.iter().map(|a| a.to_string()).collect();
        Rule::parse(rule).unwrap().is_right(output, &answers)
    }

    #[test]
    fn exact_overlooks_case_punctuation_articles_and_spaces_and_no_more() {
        assert!(right("exact", " The  Beatles. ", &["Rolling Stones", "beatles"]));
        assert!(right("exact", "St. John's", &["st johns"]));
        assert!(!right("exact", "The Beatles and others", &["Beatles"]));
        assert!(!right("exact", "", &["Beatles"]));
        assert!(
            right("exact", "A.", &["a"]) && !right("exact", "", &["A"]) && !right("exact", "the", &["A"])
        );
    }

    #[test]
    fn numbers_are_those_after_the_mark_or_the_last_ones() {
        let answer = &["She sold 2 and 3.\n#### 1,005"];
        assert!(right("number", "so 7 in all\n#### 1005", answer));
        assert!(right("number", "First 7, then $1,005.00.", answer));
        assert!(right("number", "#### 1005 and then 9", answer));
        assert!(!right("number", "1005 or rather 1006", answer));
        assert!(!right("number", "#### none", answer));
        assert!(!right("number", "no number", answer));
        assert!(right("number", "it is -3", &["#### -3"]));
        assert!(!right("number", "it is 3", &["#### -3"]));
    }

    #[test]
    fn a_pattern_compares_its_first_group_with_answer_or_what_it_finds_there() {
        assert!(right(r"answer is \(?([A-D])", "I think the answer is (B).", &["B"]));
        assert!(right(r"answer is \(?([A-D])", "the answer is A; no, the answer is C", &["the answer is C"]));
        assert!(!right(r"answer is \(?([A-D])", "B", &["B"]));
        assert!(right("yes|no", "yes and no", &["no"]));
        let error = Rule::parse("(").unwrap_err().to_string();
        assert!(error.contains("--match") && error.contains("unclosed group"), "{error}");
    }
}
