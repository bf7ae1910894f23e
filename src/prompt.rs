//! Chat templates: each model of a trio reads a conversation in its own form.

use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Steps that a template may take: templates come with model files, from strangers.
const FUEL: u64 = 1_000_000;

/// Renders a conversation by a Jinja chat template as Hugging Face's models carry it, up to where the assistant speaks.
///
/// # Errors
/// [`Error::Invalid`] with the template's own words when it is broken or refuses the conversation.
pub fn render(template: &str, messages: &[Message], [bos, eos]: &[String; 2]) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |text: String| -> std::result::Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        },
    );
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let expected = "one that renders system and user messages; or choose another: own, host, none or a file";
    let refused = |e: minijinja::Error| Error::invalid("chat template", e, expected);
    environment.set_syntax(syntax.map_err(refused)?);
    let message = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
    let messages: Vec<Value> = messages.iter().map(message).collect();
    let values = context! { messages, bos_token => bos.as_str(), eos_token => eos.as_str(), add_generation_prompt => true };
    environment.render_str(template, values).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].strip() }}<|im_end|>\n\
                          {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn chatml_with_a_python_method_renders() {
        let text = render(CHATML, &[Message::new("user", " hello ")], &Default::default()).unwrap();
        assert_eq!(text, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn a_refusal_is_quoted_and_an_endless_template_ends() {
        let refusal =
            render("{{ raise_exception('no system role') }}", &[], &Default::default()).unwrap_err();
        assert!(refusal.to_string().contains("no system role"), "{refusal}");
        let endless = "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(render(endless, &[], &Default::default()).is_err());
    }
}
