//! The choices of a request, which the engine runs one by one, made one answer.

use serde_json::{Value, json};

/// Joins what comes of the parts of a request.
#[derive(Default)]
pub struct Parts {
    id: Option<Value>,
    /// Chunks, or tokens of streams.
    pub count: u64,
    /// Parts that are through.
    pub finished: usize,
    /// Tokens that they generated, as mistral.rs counts them.
    pub completion_tokens: u64,
}

impl Parts {
    /// Makes an answer of one part an answer of `all` of them: its choices numbered, one id, and the tokens of all parts in
    /// the usage of the last. `last`: it is the part's last.
    pub fn join(&mut self, part: usize, value: &mut Value, last: bool, all: usize) {
        self.count += 1;
        self.finished += usize::from(last);
        value["id"] = self.id.get_or_insert_with(|| value["id"].clone()).clone();
        for choice in value["choices"].as_array_mut().into_iter().flatten() {
            choice["index"] = json!(part);
        }
        let Some(usage) = value.get_mut("usage").filter(|usage| usage.is_object()) else { return };
        self.completion_tokens += usage["completion_tokens"].as_u64().unwrap_or_default();
        let total = self.completion_tokens + usage["prompt_tokens"].as_u64().unwrap_or_default();
        usage["completion_tokens"] = json!(self.completion_tokens);
        usage["total_tokens"] = json!(total);
        if self.finished < all {
            *usage = Value::Null;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunks_of_two_choices_become_one_stream() {
        let mut parts = Parts::default();
        let chunk = |id: &str, usage: Value| json!({ "id": id, "choices": [{ "index": 0 }], "usage": usage });
        let usage = |tokens: u64| json!({ "prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens });
        let mut join = |part, mut value, last| {
            parts.join(part, &mut value, last, 2);
            value
        };
        let first = join(1, chunk("7", Value::Null), false);
        assert_eq!((&first["id"], &first["choices"][0]["index"]), (&json!("7"), &json!(1)));
        let end = join(1, chunk("7", usage(2)), true);
        assert_eq!(end["usage"], Value::Null);
        let end = join(0, chunk("6", usage(5)), true);
        assert_eq!((&end["id"], &end["choices"][0]["index"]), (&json!("7"), &json!(0)));
        assert_eq!(end["usage"], usage(7));
        assert_eq!((parts.finished, parts.count), (2, 3));
    }
}
