//! Which way to shift, by what the host offers and the job asks for.

use super::{Advisers, BlackBox, Ids, Job, Way};
use crate::backend::llama::SamplerOptions;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Chooses it.
///
/// # Errors
/// [`Error::Invalid`] where there is none, or the job wants what that way cannot do.
pub(super) fn choose_way(
    host: &dyn BlackBox,
    advisers: Option<&Arc<Advisers>>,
    ids: &Ids,
    job: &Job,
) -> Result<Way> {
    let offers = host.offers();
    let biases = offers.bias.is_some() && *ids != Ids::Unknown || advisers.is_none();
    let way = match job.way {
        Way::Auto if offers.top > 1 => Way::Reweigh,
        Way::Auto if biases => Way::Bias,
        Way::Auto => {
            let given = "a host that shows no log-probabilities, and tokens whose numbers are not known";
            let expected = "one that shows them, or --host-vocab with its vocabulary, for shifting by bias";
            return Err(Error::invalid("--way", given, expected));
        }
        Way::Reweigh if offers.top < 2 => {
            let expected = "bias, or a host that shows the log-probabilities of its tokens";
            return Err(Error::invalid(
                "--way",
                "reweigh with a host that shows no log-probabilities",
                expected,
            ));
        }
        Way::Bias if !biases => {
            let given = "bias with a host whose tokens' numbers are not known, or that takes no logit_bias";
            return Err(Error::invalid("--way", given, "--host-vocab with its vocabulary, or reweigh"));
        }
        way => way,
    };
    if !offers.continues && job.max_tokens > 1 {
        let expected = "1 (one token of an answer), or --host-api completions";
        let given = format!("{} from a chat API that does not continue an answer", job.max_tokens);
        return Err(Error::invalid("--max-tokens", given, expected));
    }
    let SamplerOptions { repeat_penalty, top_k, min_p, .. } = job.sampler;
    if repeat_penalty != 1.0 {
        let expected = "1: a host that shows probabilities has no logits to divide";
        return Err(Error::invalid("--repeat-penalty", repeat_penalty, expected));
    }
    if let Some(cap) = job.control.cap.filter(|_| way == Way::Bias) {
        let expected = "0 by bias, where the host's own tokens are not seen; or --way reweigh";
        return Err(Error::invalid("--shift-cap", cap, expected));
    }
    if way == Way::Bias && (top_k != 0 || min_p != 0.0) {
        let expected =
            "neither: by bias the host samples, by temperature, --top-p and --seed; or --way reweigh";
        return Err(Error::invalid("--top-k or --min-p", "a value", expected));
    }
    Ok(way)
}
