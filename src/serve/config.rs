//! A configuration file of proxytune, or one of `mistralrs from-config` with a section `[proxy_tuning]` added.

use crate::config::{self, Config, read_toml};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What a file says: proxytune's configuration, and what mistral.rs is told besides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServeConfig {
    /// Models, proxy-tuning and `[server]`.
    pub config: Config,
    /// The host's name in `/v1/models`; `None`: the file's name.
    pub model_id: Option<String>,
    /// A chat template in place of the host's own: a `.jinja` file, or mistral.rs's `.json`.
    pub chat_template: Option<PathBuf>,
    /// A file that mistral.rs writes requests and responses to.
    pub log: Option<PathBuf>,
}

impl ServeConfig {
    /// Reads a file of either kind.
    ///
    /// # Errors
    /// [`Error::Config`] with line and key for what is unknown, [`Error::Invalid`] for what proxytune cannot honour.
    pub fn read(path: &Path) -> Result<Self> {
        read_toml::<File>(path)?.into_config()
    }
}

/// All keys of both kinds of files.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    host: config::Host,
    proxy_tuning: config::ProxyTuning,
    server: config::Server,
    command: Option<String>,
    default_model_id: Option<String>,
    global: Global,
    runtime: Runtime,
    paged_attn: PagedAttention,
    models: Vec<Model>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Global {
    seed: Option<u64>,
    log: Option<PathBuf>,
    #[serde(rename = "token_source")]
    _token_source: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Runtime {
    max_seqs: Option<usize>,
    no_kv_cache: bool,
    prefix_cache_n: Option<usize>,
    chat_template: Option<PathBuf>,
    jinja_explicit: Option<PathBuf>,
    enable_search: bool,
    search_embedding_model: Option<String>,
}

/// Sizes of a cache that only GPUs have; checked for their types alone.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PagedAttention {
    mode: PagedAttentionMode,
    #[serde(rename = "context_len")]
    _context_len: Option<usize>,
    #[serde(rename = "memory_mb")]
    _memory_mb: Option<usize>,
    #[serde(rename = "memory_fraction")]
    _memory_fraction: Option<f32>,
    #[serde(rename = "block_size")]
    _block_size: Option<usize>,
    #[serde(rename = "cache_type")]
    _cache_type: Option<String>,
}

#[derive(Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PagedAttentionMode {
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    kind: String,
    model_id: String,
    tokenizer: Option<PathBuf>,
    #[serde(rename = "arch")]
    _arch: Option<String>,
    dtype: Option<String>,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    adapter: toml::Table,
    #[serde(default)]
    quantization: toml::Table,
    #[serde(default)]
    device: Device,
    /// Limits for images, which a text model has no use for.
    #[serde(default, rename = "multimodal")]
    _multimodal: toml::Table,
    chat_template: Option<PathBuf>,
    jinja_explicit: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Format {
    format: Option<String>,
    quantized_file: Option<String>,
    tok_model_id: Option<String>,
    #[serde(rename = "gqa")]
    _gqa: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Device {
    #[serde(rename = "cpu")]
    _cpu: Option<bool>,
    device_layers: Option<Vec<String>>,
    topology: Option<PathBuf>,
    #[serde(rename = "hf_cache")]
    _hf_cache: Option<PathBuf>,
    max_seq_len: Option<usize>,
    #[serde(rename = "max_batch_size")]
    _max_batch_size: Option<usize>,
}

/// Refuses a key that is set to something that cannot be honoured.
fn refuse(is_set: bool, key: &str, given: impl std::fmt::Display, expected: &str) -> Result<()> {
    if is_set { Err(Error::invalid(key, given, expected)) } else { Ok(()) }
}

/// A value to show in an error.
fn shown<T: std::fmt::Debug>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "nothing".into(), |value| format!("{value:?}"))
}

impl File {
    fn into_config(self) -> Result<ServeConfig> {
        self.check()?;
        let Self { host, proxy_tuning, mut server, global, runtime, mut models, .. } = self;
        if let Some(max_seqs) = runtime.max_seqs {
            server.max_seqs = max_seqs;
        }
        let config = Config { host, proxy_tuning, server };
        let template = runtime.jinja_explicit.or(runtime.chat_template);
        let mut all = ServeConfig { config, model_id: None, chat_template: template, log: global.log };
        if let Some(model) = models.pop() {
            refuse(
                all.config.host.model.is_some(),
                "host.model",
                "a file beside [[models]]",
                "one of the two",
            )?;
            all.config.host.model = Some(model.file()?);
            all.config.host.ctx = model.device.max_seq_len.unwrap_or(all.config.host.ctx);
            all.chat_template = model.jinja_explicit.or(model.chat_template).or(all.chat_template);
            all.model_id = Some(model.model_id);
        }
        all.config.check()?;
        Ok(all)
    }

    fn check(&self) -> Result<()> {
        let Self { server, global, runtime, paged_attn, models, .. } = self;
        let command = self.command.as_deref().unwrap_or("serve");
        refuse(command != "serve", "command", command, "serve")?;
        refuse(models.len() > 1, "models", models.len(), "one model: the proxies belong to one host")?;
        let id = self.default_model_id.as_ref();
        let other = id.is_some_and(|id| models.iter().all(|m| m.model_id != *id));
        refuse(other, "default_model_id", shown(&id), "the model_id of the one in [[models]]")?;
        refuse(
            global.seed.is_some(),
            "global.seed",
            shown(&global.seed),
            "no seed: mistral.rs's sampler ignores it; \
               requests may carry one",
        )?;
        refuse(runtime.no_kv_cache, "runtime.no_kv_cache", true, "false")?;
        let search = runtime.enable_search || runtime.search_embedding_model.is_some();
        refuse(search, "runtime.enable_search", true, "false: proxytune serves no web search")?;
        refuse(server.ui, "server.ui", true, "false: proxytune serves no web interface")?;
        let mcp = server.mcp_port.is_some() || server.mcp_config.is_some();
        refuse(mcp, "server.mcp_port or mcp_config", "a value", "none: proxytune serves no MCP")?;
        let on = paged_attn.mode == PagedAttentionMode::On;
        refuse(on, "paged_attn.mode", "on", "auto or off: it needs a GPU")?;
        if runtime.prefix_cache_n.is_some_and(|n| n > 0) {
            tracing::warn!(
                "runtime.prefix_cache_n: the host's prefix cache stays off, since it hides tokens from logits \
                            processors; the proxies have their own"
            );
        }
        models.iter().try_for_each(Model::check)
    }
}

impl Model {
    fn check(&self) -> Result<()> {
        let text = ["auto", "text"].contains(&self.kind.as_str());
        refuse(!text, "models.kind", &self.kind, "auto or text")?;
        let format = &self.format;
        let gguf = format.format.as_deref() == Some("gguf");
        refuse(!gguf, "models.format.format", shown(&format.format), "gguf: the host is a GGUF file")?;
        let own = "nothing: the tokenizer of the GGUF file is used";
        refuse(
            format.tok_model_id.is_some(),
            "models.format.tok_model_id",
            shown(&format.tok_model_id),
            own,
        )?;
        refuse(self.tokenizer.is_some(), "models.tokenizer", shown(&self.tokenizer), own)?;
        let dtype = self.dtype.as_deref().unwrap_or("auto");
        refuse(
            dtype != "auto",
            "models.dtype",
            dtype,
            "auto: files in f32 stay so, others are as mistral.rs has them",
        )?;
        refuse(!self.adapter.is_empty(), "models.adapter", "a section", "none: a GGUF file as it is")?;
        refuse(
            !self.quantization.is_empty(),
            "models.quantization",
            "a section",
            "none: a GGUF file as it is",
        )?;
        let device = &self.device;
        let layers = device.device_layers.is_some() || device.topology.is_some();
        refuse(layers, "models.device.device_layers or topology", "a value", "none: placement is automatic")
    }

    /// The GGUF file, which must be on this machine.
    fn file(&self) -> Result<PathBuf> {
        let name = self.format.quantized_file.as_deref().unwrap_or_default();
        let one = !name.is_empty() && !name.contains(';');
        refuse(
            !one,
            "models.format.quantized_file",
            shown(&self.format.quantized_file),
            "the name of one GGUF file",
        )?;
        let folder = Path::new(&self.model_id);
        let expected = "a folder on this machine with the GGUF file in it: proxytune downloads nothing";
        refuse(!folder.is_dir(), "models.model_id", &self.model_id, expected)?;
        Ok(folder.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ServeConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        ServeConfig::read(&path)
    }

    const MISTRALRS: &str = r#"
        command = "serve"
        default_model_id = "models"
        [global]
        log = "requests.log"
        token_source = "none"
        [runtime]
        max_seqs = 8
        prefix_cache_n = 0
        [server]
        port = 1234
        [paged_attn]
        mode = "auto"
        context_len = 4096
        [[models]]
        kind = "text"
        model_id = "models"
        dtype = "auto"
        [models.format]
        format = "gguf"
        quantized_file = "tiny-host.gguf"
        [models.device]
        cpu = true
        max_seq_len = 256
        [proxy_tuning]
        tuned = "models/tiny-tuned.gguf"
        untuned = "models/tiny-untuned.gguf"
    "#;

    #[test]
    fn a_file_of_mistralrs_is_taken_as_it_is() {
        let ServeConfig { config, model_id, log, .. } = read(MISTRALRS).unwrap();
        assert_eq!(config.host.model, Some("models/tiny-host.gguf".into()));
        assert_eq!((config.host.ctx, config.server.max_seqs, config.server.port), (256, 8, 1234));
        assert_eq!(config.server.host, "127.0.0.1", "loopback unless told otherwise");
        assert_eq!((model_id.as_deref(), log), (Some("models"), Some("requests.log".into())));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let cases = [
            (
                "quantized_file = \"tiny-host.gguf\"",
                "quantized_file = \"a.gguf;b.gguf\"",
                "models.format.quantized_file",
            ),
            ("format = \"gguf\"", "format = \"plain\"", "models.format.format"),
            ("kind = \"text\"", "kind = \"speech\"", "models.kind"),
            (
                "model_id = \"models\"\n        dtype",
                "model_id = \"Qwen/Qwen3\"\n        dtype",
                "default_model_id",
            ),
            ("port = 1234", "ui = true", "server.ui"),
            ("prefix_cache_n = 0", "no_kv_cache = true", "runtime.no_kv_cache"),
            ("token_source = \"none\"", "seed = 7", "global.seed"),
            ("mode = \"auto\"", "mode = \"on\"", "paged_attn.mode"),
            ("max_seqs = 8", "max_seqs = 0", "server.max_seqs"),
        ];
        for (from, to, key) in cases {
            assert!(MISTRALRS.contains(from), "{from}");
            let error = read(&MISTRALRS.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(key), "{key}: {error}");
        }
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        let error = read(&MISTRALRS.replace("max_seqs", "max_seq")).unwrap_err().to_string();
        assert!(error.contains("line 8") && error.contains("did you mean `max_seqs`?"), "{error}");
    }
}
