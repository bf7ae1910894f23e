//! `proxytune serve`.

use crate::args::Engine;
use crate::args::host::Api;
use crate::args::serve::Serve;
use proxytune::Result;
use proxytune::config::Config;
use proxytune::host::blackbox::{Advisers, Ids};
use proxytune::host::openai::{Form, OpenAi};
use proxytune::serve::gateway::{Backing, Defaults, Gateway};
use proxytune::serve::signal;
use std::process::ExitCode;
use std::sync::Arc;

pub fn run(args: &Serve) -> Result<ExitCode> {
    let config = args.config()?;
    if args.trio.engine() == Engine::Openai {
        return gateway(args, &config.config);
    }
    in_mistral(config)
}

#[cfg(feature = "serve")]
fn in_mistral(config: proxytune::serve::ServeConfig) -> Result<ExitCode> {
    crate::say::note!("loading the models");
    proxytune::serve::serve(config, signal(), |address| crate::say::note!("listening on http://{address}"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "serve"))]
fn in_mistral(_: proxytune::serve::ServeConfig) -> Result<ExitCode> {
    let expected = "--engine openai for a host behind an API, or a build with mistral.rs in it: make build FEATURES=serve";
    Err(proxytune::Error::invalid("serve", "a host in this process", expected))
}

/// In front of a host behind an API.
fn gateway(args: &Serve, config: &Config) -> Result<ExitCode> {
    Api::refuse_file(config)?;
    let options = args.api.options()?;
    let server = &config.server;
    let tuning = &config.proxy_tuning;
    let defaults = Defaults {
        alpha: tuning.alpha,
        control: tuning.control(),
        tuned_system: None,
        way: args.api.way(),
        speculate: tuning.speculate,
        on_error: tuning.on_error,
    };
    crate::runtime()?.block_on(async {
        let gateway = Gateway::bind(server).await?;
        crate::say::note!("loading the proxies");
        let slots = tuning.slots.max(server.max_seqs.min(256));
        let mut for_all = config.clone();
        for_all.proxy_tuning.slots = slots;
        let advisers = Arc::new(Advisers::load(for_all, slots, usize::MAX)?);
        let (first, ids) = args.api.connect(Some(&advisers)).await?;
        let backing = backing(first, ids, advisers, options).await?;
        crate::say::note!("listening on http://{}", gateway.address());
        gateway.serve(backing, defaults, signal()).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The host in both of its forms, as far as it has them and nothing else was said.
async fn backing(
    first: OpenAi,
    ids: Ids,
    advisers: Arc<Advisers>,
    options: proxytune::host::openai::Options,
) -> Result<Backing> {
    if first.form() == Form::Chat {
        return Ok(Backing { completions: None, chat: Some(first), advisers, ids });
    }
    let chat = match options.form {
        Form::Auto => first.in_form(Form::Chat, &options).await.ok(),
        _ => None,
    };
    let chat = chat.map(|mut chat| {
        chat.match_ids(&advisers);
        chat
    });
    Ok(Backing { completions: Some(first), chat, advisers, ids })
}
