//! Proxy-tuning in a program of one's own that uses mistral.rs: three lines more than without.
//!
//! ```sh
//! cargo run --release --features mistralrs --example mistralrs -- proxytune.toml "def read_file(path):"
//! ```

use mistralrs::{GgufModelBuilder, RequestBuilder, TextMessageRole};
use proxytune::config::Config;
use proxytune::host::mistralrs::{ProxyTuning, RequestOptions};
use std::path::Path;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(question)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: mistralrs CONFIG.toml QUESTION");
    };
    let config = Config::read(Path::new(&file))?;
    let path = config.host.model.clone().unwrap_or_default();
    let (folder, name) = (path.parent().unwrap_or(Path::new(".")), path.file_name().unwrap_or_default());
    let model = GgufModelBuilder::new(folder.display(), vec![name.display()])
        .with_prefix_cache_n(None) // a processor must be told whole histories
        .build()
        .await?;

    let tuning = ProxyTuning::from_file(Path::new(&file))?; // once a model
    let processor = tuning.processor(RequestOptions::default())?; // once a request
    let request = RequestBuilder::new()
        .add_message(TextMessageRole::User, &question)
        .set_sampler_max_len(64)
        .set_sampler_temperature(0.0)
        .add_logits_processor(processor.clone());

    let response = model.send_chat_request(request).await?;
    println!("{}", response.choices[0].message.content.as_deref().unwrap_or_default());
    let report = processor.report();
    eprintln!("the shift changed {} of {} positions", report.shifted, report.positions);
    Ok(())
}
