//! A model's weights and vocabulary, shared by any number of contexts.

use super::adapter::Adapter;
use super::weights::Weights;
use super::{gguf, log, sys};
use crate::error::{Error, Result};
use crate::vocab::{Entry, Kind, Token, Vocabulary};
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

/// How a model is loaded.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// Layers on the accelerator, as in llama.cpp; negative: all.
    pub gpu_layers: i32,
    /// The accelerator by its name in llama.cpp, for instance `CUDA1`; `None`: llama.cpp chooses.
    pub device: Option<String>,
    /// Reads metadata and vocabulary only.
    pub vocab_only: bool,
    /// Reads the weights into memory of this process. Else the file is mapped, which is quicker and shares memory with
    /// other processes, but a file that is cut short afterwards then ends this one (`SIGBUS`).
    pub in_memory: bool,
    /// Called with the share loaded, 0 to 1; loading stops when it returns false.
    pub progress: Option<&'a mut dyn FnMut(f32) -> bool>,
}

/// A loaded GGUF model, perhaps with a LoRA adapter over weights that another model shares
/// ([`with_lora`](Self::with_lora)).
pub struct LlamaModel {
    weights: Arc<Weights>,
    pub(super) adapter: Option<Adapter>,
    path: PathBuf,
}

impl LlamaModel {
    /// Loads a model from a GGUF file.
    ///
    /// # Errors
    /// [`Error::Model`] with the engine's reason when the file is missing, truncated, of another format or of an
    /// architecture that it does not know; [`Error::Interrupted`] when `progress` said stop.
    pub fn load(path: &Path, options: LoadOptions<'_>) -> Result<Self> {
        #[cfg(not(feature = "llama"))]
        sys::load()?;
        log::init();
        gguf::check(path)?;
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Error::invalid("model path", path.display(), "a path without NUL"))?;
        gguf::check_tokens(path, &c_path)?;
        let mut report = Report { callback: options.progress, stopped: false };
        let mut devices = match &options.device {
            Some(name) => [device(name)?, std::ptr::null_mut()],
            None => [std::ptr::null_mut(); 2],
        };
        // SAFETY: parameters come from the engine's defaults; `devices` and `report` outlive the call that uses them.
        let (raw, reason) = log::with_last_error(|| unsafe {
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = options.gpu_layers;
            params.vocab_only = options.vocab_only;
            if options.in_memory {
                #[cfg(not(llama_use_mmap))]
                (params.load_mode = sys::LLAMA_LOAD_MODE_NONE);
                #[cfg(llama_use_mmap)]
                (params.use_mmap = false);
            }
            params.progress_callback = Some(Report::progress);
            params.progress_callback_user_data = (&raw mut report).cast();
            if options.device.is_some() {
                params.devices = devices.as_mut_ptr();
            }
            sys::llama_model_load_from_file(c_path.as_ptr(), params)
        });
        match NonNull::new(raw) {
            Some(raw) => {
                return_freed_memory();
                Ok(Self::new(raw, path.into(), options.vocab_only, false))
            }
            None if report.stopped => Err(Error::Interrupted),
            None => Err(Error::Model {
                path: path.into(),
                what: format!("llama.cpp cannot load it ({})", if reason.is_empty() { "no reason given" } else { &reason }),
                help: "the file may be truncated or of an architecture newer than this build; download it again or \
                       convert it anew"
                    .into(),
            }),
        }
    }

    /// Reads a LoRA adapter for this model and returns the tuned and the plain model, in this order: one copy of the
    /// weights in memory, two models to make contexts of. Of a model that was loaded without weights the file is checked
    /// only.
    ///
    /// llama.cpp adds an adapter's part to each matrix product, for all sequences of a context; so the two models cannot
    /// share a forward pass.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for a file that is no LoRA adapter, is broken or truncated, belongs to another
    /// model, or holds what llama.cpp would leave out; [`Error::Invalid`](crate::Error::Invalid) for a model that has an
    /// adapter already.
    pub fn with_lora(mut self, path: &Path) -> Result<[Self; 2]> {
        gguf::check(path)?;
        let adapter = Adapter::load(&mut self.weights, &self.path, path)?;
        let tuned = Self { weights: self.weights.clone(), adapter, path: path.into() };
        Ok([tuned, self])
    }

    /// The model of a context that somebody else made; not freed here.
    ///
    /// # Safety
    /// The context is valid, and its model lives longer than what is returned.
    pub(crate) unsafe fn of_context(context: *const sys::llama_context) -> Option<Self> {
        // SAFETY: the context is valid; its model is only read from here on.
        let raw = NonNull::new(unsafe { sys::llama_get_model(context) }.cast_mut())?;
        Some(Self::new(raw, PathBuf::from("the process's model"), false, true))
    }

    fn new(raw: NonNull<sys::llama_model>, path: PathBuf, vocab_only: bool, borrowed: bool) -> Self {
        let weights = Arc::new(Weights { raw, vocab_only, borrowed });
        Self { weights, adapter: None, path }
    }

    pub(super) fn raw(&self) -> *mut sys::llama_model {
        self.weights.raw.as_ptr()
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive; the vocabulary lives as long as it does.
        unsafe { sys::llama_model_get_vocab(self.raw()) }
    }

    /// The file it came from; of a model with an adapter, the adapter's.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of tokens, which is the length of a row of logits.
    pub fn vocab_len(&self) -> usize {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_n_tokens(self.vocab()) as usize }
    }

    /// Tokens of context that it was trained on.
    pub fn trained_context(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_ctx_train(self.raw()).max(0) as usize }
    }

    /// Whether all weights are 32-bit floats.
    pub fn is_f32(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_ftype(self.raw()) == sys::LLAMA_FTYPE_ALL_F32 }
    }

    /// Whether its memory is (partly) recurrent, so that it can neither drop tokens nor be copied in part.
    pub fn is_recurrent(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_is_recurrent(self.raw()) || sys::llama_model_is_hybrid(self.raw()) }
    }

    /// Number of weights, those of an adapter left out.
    pub fn parameters(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_params(self.raw()) }
    }

    /// Bytes of all weights, those of an adapter left out.
    pub fn size(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_size(self.raw()) }
    }

    /// Bytes of KV cache for one token, with `element` bytes a number.
    pub fn kv_bytes_per_token(&self, element: usize) -> u64 {
        // SAFETY: the model is alive.
        let (layers, embd, heads, kv_heads) = unsafe {
            let raw = self.raw();
            (
                sys::llama_model_n_layer(raw),
                sys::llama_model_n_embd(raw),
                sys::llama_model_n_head(raw).max(1),
                sys::llama_model_n_head_kv(raw),
            )
        };
        2 * layers as u64 * (embd / heads * kv_heads) as u64 * element as u64
    }

    /// A metadata value of the file, as text.
    pub fn metadata(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut text = vec![0u8; 256];
        // SAFETY: the engine writes at most the given length, terminator included, and returns the full length.
        let read = |text: &mut Vec<u8>| unsafe {
            sys::llama_model_meta_val_str(self.raw(), key.as_ptr(), text.as_mut_ptr().cast(), text.len())
        };
        let len = usize::try_from(read(&mut text)).ok()?;
        if len >= text.len() {
            text.resize(len + 1, 0);
            read(&mut text);
        }
        text.truncate(len);
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// The chat template of the file, in Jinja.
    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: the engine returns null or a string that lives as long as the model.
        let text = unsafe { sys::llama_model_chat_template(self.raw(), std::ptr::null()) };
        // SAFETY: as above.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// The beginning- and end-of-text tokens as text, empty where the model has none.
    pub fn bos_eos_text(&self) -> [String; 2] {
        // SAFETY: the vocabulary is alive.
        let ids = unsafe { [sys::llama_vocab_bos(self.vocab()), sys::llama_vocab_eos(self.vocab())] };
        ids.map(|id| match Token::try_from(id) {
            Ok(id) => String::from_utf8_lossy(&self.piece(id, true)).into_owned(),
            Err(_) => String::new(),
        })
    }

    /// The token that ends a text, where the model has one.
    pub fn end(&self) -> Option<Token> {
        // SAFETY: the vocabulary is alive.
        Token::try_from(unsafe { sys::llama_vocab_eos(self.vocab()) }).ok()
    }

    /// Whether a token ends the generation.
    pub fn is_end(&self, token: Token) -> bool {
        // SAFETY: the vocabulary is alive and the token within it.
        (token as usize) < self.vocab_len() && unsafe { sys::llama_vocab_is_eog(self.vocab(), token as i32) }
    }

    /// Splits text into tokens. `control` lets the text spell control tokens such as the end of a turn: right for
    /// rendered templates, wrong for text from strangers. The model's own beginning-of-text token is added.
    pub fn tokenize(&self, text: &str, control: bool) -> Vec<Token> {
        self.tokenize_bytes(text.as_bytes(), true, control)
    }

    /// As [`tokenize`](Self::tokenize) for any bytes; `begin` adds the beginning-of-text token where the model has it.
    pub fn tokenize_bytes(&self, text: &[u8], begin: bool, control: bool) -> Vec<Token> {
        let Ok(len) = i32::try_from(text.len()) else { return Vec::new() };
        let mut tokens = vec![0i32; text.len() + 8];
        let split = |tokens: &mut Vec<i32>| {
            let room = tokens.len().min(i32::MAX as usize) as i32;
            // SAFETY: both pointers come with their lengths; the engine reads and writes no further.
            unsafe {
                let text: *const c_char = text.as_ptr().cast();
                sys::llama_tokenize(self.vocab(), text, len, tokens.as_mut_ptr(), room, begin, control)
            }
        };
        let mut count = split(&mut tokens);
        if count < 0 && count != i32::MIN {
            tokens.resize(count.unsigned_abs() as usize, 0);
            count = split(&mut tokens);
        }
        tokens.truncate(usize::try_from(count).unwrap_or(0));
        tokens.into_iter().map(|t| t as Token).collect()
    }

    /// The bytes that a token spells; a control token's name where `control`, else nothing. Empty beyond the vocabulary.
    pub fn piece(&self, token: Token, control: bool) -> Vec<u8> {
        if token as usize >= self.vocab_len() {
            return Vec::new();
        }
        let mut bytes = vec![0u8; 64];
        // SAFETY: the token is within the vocabulary; at most the given length is written.
        let spell = |bytes: &mut Vec<u8>| unsafe {
            let buffer = bytes.as_mut_ptr().cast();
            sys::llama_token_to_piece(self.vocab(), token as i32, buffer, bytes.len() as i32, 0, control)
        };
        let mut len = spell(&mut bytes);
        if len < 0 {
            bytes.resize(len.unsigned_abs() as usize, 0);
            len = spell(&mut bytes);
        }
        bytes.truncate(usize::try_from(len).unwrap_or(0));
        bytes
    }

    /// The whole vocabulary, for matching with another model's.
    pub fn vocabulary(&self) -> Vocabulary {
        let entry = |id: usize| {
            // SAFETY: the vocabulary is alive and the token within it.
            let attr = unsafe { sys::llama_vocab_get_attr(self.vocab(), id as i32) };
            let kind = match attr {
                a if a & (sys::LLAMA_TOKEN_ATTR_UNUSED | sys::LLAMA_TOKEN_ATTR_UNKNOWN) != 0 => Kind::Unused,
                a if a & sys::LLAMA_TOKEN_ATTR_CONTROL != 0 => Kind::Control,
                a if a & sys::LLAMA_TOKEN_ATTR_BYTE != 0 => Kind::Byte,
                _ => Kind::Text,
            };
            Entry { bytes: self.piece(id as Token, true), kind }
        };
        Vocabulary::new((0..self.vocab_len()).map(entry).collect())
    }
}

fn device(name: &str) -> Result<sys::ggml_backend_dev_t> {
    let c_name = CString::new(name).unwrap_or_default();
    // SAFETY: the name is a valid string; devices live for ever.
    let device = unsafe { sys::ggml_backend_dev_by_name(c_name.as_ptr()) };
    if !device.is_null() {
        return Ok(device);
    }
    // SAFETY: indices below the count are valid, names live for ever.
    let known = unsafe {
        let name =
            |i| CStr::from_ptr(sys::ggml_backend_dev_name(sys::ggml_backend_dev_get(i))).to_string_lossy();
        (0..sys::ggml_backend_dev_count()).map(name).collect::<Vec<_>>().join(", ")
    };
    Err(Error::invalid("device", name, format!("one that this build of llama.cpp has: {known}")))
}

/// Gives back what loading took and freed. glibc would keep it, resident, for whoever next asks for memory that is hardly
/// touched, such as the scheduler of a context.
fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        malloc_trim(0);
    }
}

/// Carries a progress callback through the engine.
struct Report<'a> {
    callback: Option<&'a mut dyn FnMut(f32) -> bool>,
    stopped: bool,
}

impl Report<'_> {
    unsafe extern "C" fn progress(share: f32, data: *mut c_void) -> bool {
        // SAFETY: `data` is the `Report` of the load in progress, on the same thread.
        let report = unsafe { &mut *data.cast::<Report<'_>>() };
        let go_on = report.callback.as_mut().is_none_or(|callback| callback(share));
        report.stopped |= !go_on;
        go_on
    }
}
