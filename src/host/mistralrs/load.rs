//! A GGUF file in mistral.rs, as the command line and the server run it.

use super::Host;
use crate::config::Config;
use crate::decode::model_path;
use crate::error::{Error, Result};
use crate::host::vocabulary;
use mistralrs::Device;
use mistralrs::core::{
    AutoDeviceMapParams, DefaultSchedulerMethod, DeviceMapSetting, GGUFLoaderBuilder, GGUFSpecificConfig,
    MistralRs, MistralRsBuilder, ModelDType, Pipeline, SchedulerConfig, TokenSource,
};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How mistral.rs runs a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Sequences that run at once; on a CPU it is always one, see [`load`].
    pub sequences: usize,
    /// A file with a chat template, instead of the model's own: `.jinja`, or `.json` as Hugging Face's
    /// `tokenizer_config.json`.
    pub chat_template: Option<PathBuf>,
    /// What the model is called in requests; `None`: its file's name without the ending.
    pub model_id: Option<String>,
    /// A file that mistral.rs writes requests and responses to.
    pub log: Option<PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { sequences: super::ProxyTuning::SEQUENCES, chat_template: None, model_id: None, log: None }
    }
}

/// Loads the host that a configuration names, a GGUF file, on the best device that this build knows. Weights in float32 stay so.
///
/// The prefix cache stays off: with it a processor is not told the whole history at first. On a CPU
/// [`HostShape::sequences`](crate::host::HostShape) comes back as 1, and no more may be given to the engine at once: version
/// 0.8.1 computes the attention of a batch of single tokens wrongly there, for all rows but the last
/// (`flash_attn_cpu_single_q` in its `attention/backends/cpu.rs`).
///
/// # Errors
/// [`Error::Model`] with mistral.rs's words.
pub async fn load(config: &Config, options: &LoadOptions) -> Result<(Arc<MistralRs>, Host)> {
    let path = model_path(&config.host.model, "--host")?;
    let device = mistralrs::best_device(false).map_err(|e| Error::engine("mistral.rs", e.to_string()))?;
    let at_once = if device.is_cpu() { 1 } else { options.sequences };
    let mut host = Host::of_config(config, at_once)?;
    let failed = |what: String| {
        Error::Model {
        path: path.into(),
        what: format!("mistral.rs cannot load it ({what})"),
        help: "it knows the architectures llama, mistral3, phi2, phi3, starcoder2, qwen2, qwen3 and qwen3moe in GGUF; \
               run others with --engine llama"
            .into(),
    }
    };
    let sequences =
        NonZeroUsize::new(options.sequences).ok_or_else(|| Error::invalid("sequences", 0, "at least 1"))?;
    let is_f32 = vocabulary::of_gguf(path)?.is_f32();
    let files = Files::of(path, options.chat_template.as_deref());
    let loaded = tokio::task::spawn_blocking(move || files.load(&device, is_f32)).await;
    let pipeline = loaded.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(format!("{e:#}")))?;
    let scheduler = SchedulerConfig::DefaultScheduler { method: DefaultSchedulerMethod::Fixed(sequences) };
    let name = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let log = options.log.as_ref().map(|path| path.to_string_lossy().into_owned());
    let engine = MistralRsBuilder::new(pipeline, scheduler, false, None)
        .with_no_prefix_cache(true)
        .with_model_id(options.model_id.clone().unwrap_or_else(name))
        .with_opt_log(log)
        .build()
        .await;
    if host.shape.context == 0 {
        host.shape.context = engine.max_sequence_length(None).ok().flatten().unwrap_or(0);
    }
    Ok((engine, host))
}

/// A model's files as mistral.rs wants to hear of them.
struct Files {
    folder: String,
    file: String,
    template_json: Option<String>,
    template_jinja: Option<String>,
}

impl Files {
    fn of(model: &Path, chat_template: Option<&Path>) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        // A folder that exists keeps mistral.rs from asking a model hub.
        let folder = model.parent().filter(|folder| !folder.as_os_str().is_empty());
        let is_json = |path: &&Path| path.extension().is_some_and(|e| e == "json");
        Self {
            folder: folder.map_or_else(|| ".".into(), text),
            file: text(model.file_name().unwrap_or_default().as_ref()),
            template_json: chat_template.filter(is_json).map(text),
            template_jinja: chat_template.filter(|path| !is_json(path)).map(text),
        }
    }

    fn load(
        self,
        device: &Device,
        is_f32: bool,
    ) -> anyhow::Result<Arc<tokio::sync::Mutex<dyn Pipeline + Send + Sync>>> {
        let specific = GGUFSpecificConfig::default();
        let Self { folder, file, template_json, template_jinja } = self;
        let loader =
            GGUFLoaderBuilder::new(template_json, None, folder, vec![file], specific, false, template_jinja)
                .build();
        let dtype = if is_f32 { ModelDType::F32 } else { ModelDType::Auto };
        let mapping = DeviceMapSetting::Auto(AutoDeviceMapParams::default_text());
        loader.load_model_from_hf(None, TokenSource::None, &dtype, device, true, mapping, None, None)
    }
}
