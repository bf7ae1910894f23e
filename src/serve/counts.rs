//! What both servers count of their requests, for Prometheus.

use super::admission::Admission;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

/// The media type of the text that `GET /metrics` answers with.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counters of requests.
pub struct Counts {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
    first_token: Histogram,
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

impl Counts {
    /// Counters that stand in a registry.
    pub fn new(registry: &mut Registry) -> Self {
        let (requests, lost) = (Family::default(), Family::default());
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let (first_token, generated_tokens) = (histogram(), Counter::default());
        registry.register("requests", "Requests answered, by HTTP status", requests.clone());
        let help = "Time to answer, for a stream to its head";
        registry.register_with_unit("request", help, Unit::Seconds, seconds.clone());
        let help = "Time to a stream's first token";
        registry.register_with_unit("first_token", help, Unit::Seconds, first_token.clone());
        registry.register("generated_tokens", "Tokens generated", generated_tokens.clone());
        registry.register("lost_clients", "Clients that left or did not read their stream", lost.clone());
        Self { requests, seconds, first_token, generated_tokens, lost }
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

    /// Tokens were generated.
    pub fn generated(&self, tokens: u64) {
        self.generated_tokens.inc_by(tokens);
    }

    /// How many so far.
    #[cfg(feature = "openai")]
    pub fn all_generated(&self) -> u64 {
        self.generated_tokens.get()
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

/// The answer to `GET /metrics`: what is known at this moment, and what was counted.
pub fn respond(admission: &Admission, now: Option<Box<dyn Collector>>, counted: &Registry) -> Response {
    let mut text = String::new();
    let mut registry = Registry::with_prefix("proxytune");
    let requests = Now { running: admission.running(), waiting: admission.waiting() };
    registry.register_collector(Box::new(requests));
    if let Some(more) = now {
        registry.register_collector(more);
    }
    match encode_registry(&mut text, &registry).and_then(|()| encode(&mut text, counted)) {
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

/// Writes one metric.
pub fn one<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &M,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, unit, M::TYPE)?)
}
