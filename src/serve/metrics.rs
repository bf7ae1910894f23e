//! What the server has done, for Prometheus.

use super::App;
use crate::host::mistralrs::{ProxyTuning, Stats};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

/// The media type of the text that `GET /metrics` answers with.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counters of requests, beside those that the proxies keep themselves.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
    first_token: Histogram,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    lost: Family<LostLabels, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LostLabels {
    reason: Lost,
}

/// Why a client did not get its answer to the end.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub enum Lost {
    /// It closed the connection.
    Gone,
    /// It did not read.
    Slow,
}

impl Metrics {
    pub fn new(tuning: &ProxyTuning) -> Self {
        let mut registry = Registry::with_prefix("proxytune");
        let (requests, lost) = (Family::default(), Family::default());
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let first_token = histogram();
        let (prompt_tokens, generated_tokens) = (Counter::default(), Counter::default());
        registry.register("requests", "Requests answered, by HTTP status", requests.clone());
        registry.register_with_unit(
            "request",
            "Time to answer, for a stream to its head",
            Unit::Seconds,
            seconds.clone(),
        );
        registry.register_with_unit(
            "first_token",
            "Time to a stream's first token",
            Unit::Seconds,
            first_token.clone(),
        );
        registry.register("prompt_tokens", "Tokens of the host's prompts", prompt_tokens.clone());
        registry.register("generated_tokens", "Tokens generated", generated_tokens.clone());
        registry.register("lost_clients", "Clients that left or did not read their stream", lost.clone());
        registry.register_collector(Box::new(Proxies(tuning.clone())));
        Self { registry, requests, seconds, first_token, prompt_tokens, generated_tokens, lost }
    }

    /// A request was answered, its stream begun.
    pub fn answered(&self, route: &'static str, status: StatusCode, after: Duration) {
        self.requests.get_or_create(&RequestLabels { route, status: status.as_u16() }).inc();
        self.seconds.get_or_create(&RouteLabels { route }).observe(after.as_secs_f64());
    }

    /// A stream's first token came.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// A request has run.
    pub fn tokens(&self, prompt: usize, generated: u64) {
        self.prompt_tokens.inc_by(prompt as u64);
        self.generated_tokens.inc_by(generated);
    }

    /// A client has not got its answer.
    pub fn lost(&self, reason: Lost) {
        self.lost.get_or_create(&LostLabels { reason }).inc();
    }
}

/// 1 ms to about 65 s.
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

/// `GET /metrics`
pub fn respond(app: &App) -> Response {
    let mut text = String::new();
    let now = Now { running: app.admission.running(), waiting: app.admission.waiting() };
    let mut registry = Registry::with_prefix("proxytune");
    registry.register_collector(Box::new(now));
    let written =
        encode_registry(&mut text, &registry).and_then(|()| encode(&mut text, &app.metrics.registry));
    match written {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// How many requests there are at this moment.
#[derive(Debug)]
struct Now {
    running: usize,
    waiting: usize,
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauges = [
            ("running_sequences", "Sequences in the engine.", self.running),
            ("waiting_requests", "Requests that wait for their turn.", self.waiting),
        ];
        gauges.into_iter().try_for_each(|(name, help, value)| {
            one(&mut encoder, name, help, None, &ConstGauge::new(value as i64))
        })
    }
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

fn one<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &M,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, unit, M::TYPE)?)
}
