//! Chat templates, which come with model files.

use crate::mutate::mutated;
use proptest::prelude::*;
use proxytune::prompt::{Message, render};

/// More than this a template of the corpus, however broken, has no business to write.
const MOST: usize = 64 << 20;

proptest! {
    #[test]
    fn a_template_renders_or_is_refused(bytes in mutated("template"), content in ".{0,40}") {
        let template = String::from_utf8_lossy(&bytes);
        let messages = [Message::new("system", "s"), Message::new("user", &content)];
        match render(&template, &messages, &["<s>".into(), "</s>".into()]) {
            Ok(text) => prop_assert!(text.len() <= MOST),
            Err(error) => prop_assert!(error.to_string().starts_with("chat template: got ")),
        }
    }
}

#[test]
fn a_template_that_wants_all_memory_or_the_whole_stack_is_refused() {
    let bombs = [
        include_str!("corpus/template/greedy.jinja"),
        include_str!("corpus/template/nested.jinja"),
        "{{ 'x' * 1000000000000 }}",
        "{{ range(1000000000000) | list }}",
        "{{ ['x'] * 1000000000000 | list | join }}",
        "{{ 'x' | replace('x', 'x' * 100000) | replace('x', 'x' * 100000) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ];
    for bomb in bombs {
        assert!(render(bomb, &[], &Default::default()).is_err(), "{bomb}");
    }
    let deep = format!("{}1{}", "{{ (".to_string() + &"(".repeat(100_000), ")".repeat(100_001) + " }}");
    assert!(render(&deep, &[], &Default::default()).is_err());
}
