//! What the server has done, for Prometheus.

use super::App;
use super::counts::{self, Counts, one};
use crate::host::mistralrs::{ProxyTuning, Stats};
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// Counters of requests, beside those that the proxies keep themselves.
pub struct Metrics {
    registry: Registry,
    /// Those that the gateway has too.
    pub counts: Counts,
    prompt_tokens: Counter,
}

impl Metrics {
    pub fn new(tuning: &ProxyTuning) -> Self {
        let mut registry = Registry::with_prefix("proxytune");
        let (counts, prompt_tokens) = (Counts::new(&mut registry), Counter::default());
        registry.register("prompt_tokens", "Tokens of the host's prompts", prompt_tokens.clone());
        registry.register_collector(Box::new(Proxies(tuning.clone())));
        Self { registry, counts, prompt_tokens }
    }

    /// A request has run.
    pub fn tokens(&self, prompt: usize, generated: u64) {
        self.prompt_tokens.inc_by(prompt as u64);
        self.counts.generated(generated);
    }
}

/// `GET /metrics`
pub fn respond(app: &App) -> Response {
    counts::respond(&app.admission, None, &app.metrics.registry)
}

/// What the proxies count.
struct Proxies(ProxyTuning);

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies")
    }
}

impl Collector for Proxies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let counts = [
            ("positions", "Positions that were shifted.", stats.positions),
            ("shifted_tokens", "Positions whose most likely token the shift changed.", stats.shifted),
            (
                "unshifted_tokens",
                "Positions left as the host had them because a proxy failed.",
                stats.unshifted,
            ),
            ("rounds", "Rounds of the proxies.", stats.rounds),
            ("early_rounds", "Those that began with the host's step.", stats.early_rounds),
            ("round_sequences", "Sequences in all rounds: by rounds, the mean batch.", stats.sequences),
            ("history_tokens", "Tokens that the proxies were asked to follow.", stats.history_tokens),
            ("cached_tokens", "Those of them that were in the proxies' caches.", stats.cached_tokens),
            ("host_steps", "Steps of the host that host_seconds was measured over.", stats.host_steps),
        ];
        for (name, help, value) in counts {
            one(&mut encoder, name, help, None, &ConstCounter::new(value))?;
        }
        let Stats { host, tuned, untuned, wait, failures, .. } = stats;
        let times = [
            ("host", "Time in the host's steps.", host),
            ("tuned", "Time in the tuned proxy.", tuned),
            ("untuned", "Time in the untuned proxy.", untuned),
            ("wait", "Time that the host's sampler waited for the proxies, over all sequences.", wait),
        ];
        for (name, help, time) in times {
            one(&mut encoder, name, help, Some(&Unit::Seconds), &ConstCounter::new(time.as_secs_f64()))?;
        }
        let help = "Failures of the proxies, by kind.";
        let mut family = encoder.encode_descriptor("failures", help, None, MetricType::Counter)?;
        failures.into_iter().try_for_each(|(kind, count)| {
            let labels = [("kind", kind)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)
        })
    }
}
