//! What every evaluation works with.

use super::column::Column;
use super::sweep::Direct;
use crate::backend::llama::{LlamaModel, LoadOptions};
use crate::config::Config;
use crate::decode::{Models, token_map};
use crate::error::{Error, Result};
use crate::vocab::Token;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// The models, and what they are compared at.
pub struct Setup {
    /// Contexts, threads, prompts.
    pub config: Config,
    /// Host and proxies.
    pub models: Models,
    /// The host tuned directly, where there is one.
    pub direct: Option<Direct>,
    /// Weights of the shift.
    pub alphas: Vec<f32>,
}

/// How far an evaluation has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Done so far, what a journal held included.
    pub done: u64,
    /// Of this many.
    pub total: u64,
    /// What is counted.
    pub unit: &'static str,
}

/// Hears of progress; its `Break` ends the evaluation with [`Error::Interrupted`].
pub type Listen<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

impl Setup {
    /// Loads the directly tuned model. `progress` as for [`Models::load`].
    ///
    /// # Errors
    /// [`Error::Model`] when it cannot be loaded, [`Error::Vocabulary`] when it is of another family than the host.
    pub fn load_direct(
        path: &Path,
        config: &Config,
        host: &LlamaModel,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Direct> {
        let options = LoadOptions {
            gpu_layers: config.host.gpu_layers,
            device: config.host.device.clone(),
            progress: Some(progress),
            ..LoadOptions::default()
        };
        let model = Arc::new(LlamaModel::load(path, options)?);
        let map = token_map(&host.vocabulary(), &model, super::sweep::DIRECT)?;
        Ok(Direct { model, map })
    }

    /// What is scored.
    pub fn columns(&self) -> Vec<Column> {
        Column::all(self.direct.is_some(), &self.alphas)
    }

    /// The smallest context among the models, and whose it is.
    pub(super) fn context(&self) -> (usize, &'static str) {
        let tuning = &self.config.proxy_tuning;
        let own = |model: &LlamaModel, ctx: usize| if ctx == 0 { model.trained_context() } else { ctx };
        let mut all = vec![(own(&self.models.host, self.config.host.ctx), "host")];
        if let Some([(tuned, _), (untuned, _)]) = &self.models.proxies {
            all.push((own(tuned, tuning.ctx), "tuned proxy"));
            all.push((own(untuned, tuning.ctx), "untuned proxy"));
        }
        if let Some(direct) = &self.direct {
            all.push((own(&direct.model, self.config.host.ctx), super::sweep::DIRECT));
        }
        all.into_iter().min().unwrap_or((0, "host"))
    }

    /// The token that the host wants at the beginning of a text, if any.
    pub(super) fn begin(&self) -> Option<Token> {
        let host = &self.models.host;
        let first = *host.tokenize_bytes(b"", true, false).first()?;
        let [bos, _] = host.bos_eos_text();
        (!bos.is_empty() && host.piece(first, true) == bos.into_bytes()).then_some(first)
    }
}

/// Checks weights given for a sweep: each finite, none twice.
///
/// # Errors
/// [`Error::Invalid`] that names the value.
pub fn check_alphas(alphas: &[f32]) -> Result<()> {
    if alphas.is_empty() {
        return Err(Error::invalid("--alpha", "nothing", "numbers separated by commas, or auto"));
    }
    for (i, &alpha) in alphas.iter().enumerate() {
        crate::config::check_alpha(alpha)?;
        if alphas[..i].contains(&alpha) {
            return Err(Error::invalid("--alpha", format!("{alpha} twice"), "each weight once"));
        }
    }
    Ok(())
}
