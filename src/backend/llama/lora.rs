//! A look at an adapter's file before the engine gets it. What the engine would leave out without a word, or end the process
//! over, is refused.

use super::gguf::{Head, Tensor};
use super::sys;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::path::Path;

pub(super) const HELP: &str =
    "make the adapter anew from this very model with llama.cpp's convert_lora_to_gguf.py";

/// Matrices of a layer that the engine adds an adapter's part to, in every architecture that has them.
const MATRICES: [&str; 14] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
];

/// The two factors of what is added to one matrix.
#[derive(Default)]
struct Pair<'a> {
    a: Option<&'a [i64]>,
    b: Option<&'a [i64]>,
}

/// Checks that the adapter at `path` fits the model at `base` and that the engine uses all of it.
///
/// # Errors
/// [`Error::Model`] with the adapter's path.
pub(super) fn check(path: &Path, base: &Path) -> Result<()> {
    let refuse = |what: String, help: &str| Error::Model { path: path.into(), what, help: help.into() };
    let head =
        |of: &Path| CString::new(of.as_os_str().as_encoded_bytes()).ok().and_then(|of| Head::read(&of));
    let broken = || refuse("is broken or truncated: its head cannot be read".into(), HELP);
    let adapter = head(path).ok_or_else(broken)?;
    let Some(model) = head(base) else { return Err(broken()) };
    let length = std::fs::metadata(path).map_or(0, |file| file.len());
    match find_fault(&adapter, &model, length) {
        None => Ok(()),
        Some(Fault::Kind(what)) => {
            Err(refuse(what, "give a LoRA adapter in GGUF format; a whole tuned model goes into tuned"))
        }
        Some(Fault::Content(what)) => Err(refuse(what, HELP)),
    }
}

enum Fault {
    /// It is something else than a LoRA adapter.
    Kind(String),
    Content(String),
}

fn find_fault(adapter: &Head, model: &Head, length: u64) -> Option<Fault> {
    let text = |head: &Head, key| head.text(key).map(|text| text.to_string_lossy().into_owned());
    let is = |key, wanted: &str| text(adapter, key).as_deref() == Some(wanted);
    if !is(c"general.type", "adapter") || !is(c"adapter.type", "lora") {
        let kind = text(adapter, c"adapter.type").or_else(|| text(adapter, c"general.type"));
        let kind = kind.unwrap_or_else(|| "of no kind that it names".into());
        return Some(Fault::Kind(format!("is no LoRA adapter but {kind:?}")));
    }
    let content = |what: String| Some(Fault::Content(what));
    let [own, models] = [adapter, model].map(|head| text(head, c"general.architecture").unwrap_or_default());
    if own != models {
        return content(format!("is for the architecture {own:?}, the untuned proxy's is {models:?}"));
    }
    let alpha = adapter.f32(c"adapter.lora.alpha");
    if adapter.has(c"adapter.lora.alpha") && !alpha.is_some_and(f32::is_finite) {
        return content("has an adapter.lora.alpha that is no finite 32-bit float".into());
    }
    if adapter.has(c"adapter.alora.invocation_tokens") {
        return content("is an activated LoRA, which works from certain tokens on only".into());
    }
    find_fault_of_tensors(adapter, model, length).err().map(Fault::Content)
}

fn find_fault_of_tensors(adapter: &Head, model: &Head, length: u64) -> std::result::Result<(), String> {
    let shapes: HashMap<_, _> = model.tensors().map(|t| (t.name.to_string_lossy(), t.shape)).collect();
    let mut pairs = BTreeMap::<String, Pair<'_>>::new();
    for tensor in adapter.tensors() {
        let name = tensor.name.to_string_lossy();
        check_data(&name, &tensor, length)?;
        if let Some(of) = name.strip_suffix(".lora_a") {
            pairs.entry(of.into()).or_default().a = Some(tensor.shape);
        } else if let Some(of) = name.strip_suffix(".lora_b") {
            pairs.entry(of.into()).or_default().b = Some(tensor.shape);
        } else {
            return Err(format!(
                "holds {name}, which llama.cpp leaves out: only pairs .lora_a, .lora_b are added"
            ));
        }
    }
    if pairs.is_empty() {
        return Err("holds no tensors".into());
    }
    let is_tied = !shapes.contains_key("output.weight");
    // Of a model in several files only the first one's tensors are known here; the engine looks at the rest.
    let in_parts = model.has(c"split.count");
    for (name, pair) in pairs {
        let (Some(a), Some(b)) = (pair.a, pair.b) else {
            return Err(format!("holds one of {name}.lora_a and .lora_b without the other"));
        };
        check_use(&name, is_tied)?;
        match shapes.get(name.as_str()) {
            Some(shape) => check_shapes(&name, a, b, shape)?,
            None if in_parts && a[2..] == [1, 1] && b[2..] == [1, 1] => {}
            None => return Err(format!("is for {name}, which the untuned proxy has not")),
        }
    }
    Ok(())
}

fn check_data(name: &str, tensor: &Tensor<'_>, length: u64) -> std::result::Result<(), String> {
    if ![sys::GGML_TYPE_F32, sys::GGML_TYPE_F16, sys::GGML_TYPE_BF16, sys::GGML_TYPE_Q8_0]
        .contains(&tensor.kind)
    {
        return Err(format!("holds {name} in another format than f32, f16, bf16 or q8_0"));
    }
    if tensor.end > length {
        return Err(format!("is truncated: {name} ends at byte {}, the file at {length}", tensor.end));
    }
    Ok(())
}

/// Whether the engine adds a pair to the matrix of this name.
fn check_use(name: &str, is_tied: bool) -> std::result::Result<(), String> {
    let in_layer = || {
        let (_, matrix) = name.strip_prefix("blk.")?.split_once('.')?;
        Some(MATRICES.contains(&matrix.strip_suffix(".weight")?))
    };
    match name {
        // The same matrix serves as output, where the engine would multiply by factors that lie the other way.
        "token_embd.weight" if is_tied => Err(format!(
            "is for {name}, which is this model's output as well: llama.cpp cannot add to such a matrix"
        )),
        "token_embd.weight" | "output.weight" => Ok(()),
        _ if in_layer() == Some(true) => Ok(()),
        _ => Err(format!(
            "is for {name}, which llama.cpp adds no adapter to; it does to matrices of attention and feed-forward"
        )),
    }
}

/// Shapes as ggml has them, inputs first. The embedding's factors lie the other way than all others.
fn check_shapes(name: &str, a: &[i64], b: &[i64], matrix: &[i64]) -> std::result::Result<(), String> {
    let (inputs, outputs, ranks) = match name {
        "token_embd.weight" => (b[1], a[1], [a[0], b[0]]),
        _ => (a[0], b[1], [a[1], b[0]]),
    };
    // Experts, one after the other.
    let alike = [a, b].iter().all(|factor| factor[2..] == matrix[2..]);
    if inputs != matrix[0] || outputs != matrix[1] || !alike || ranks[0] != ranks[1] || ranks[0] < 1 {
        return Err(format!(
            "has {name}.lora_a as {a:?} and .lora_b as {b:?}, which do not fit its {matrix:?}"
        ));
    }
    Ok(())
}
