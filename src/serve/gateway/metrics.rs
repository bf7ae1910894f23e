//! What the gateway has done and what it has paid, for Prometheus.

use super::App;
use crate::host::blackbox::{Event, Spent};
use crate::host::openai::{Failure, OpenAi};
use crate::serve::counts::{self, Counts, one};
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;

/// Counters of requests; what goes on behind the gateway is counted there.
pub struct Metrics {
    registry: Registry,
    pub counts: Counts,
    shifted: Counter,
    /// Requests that looked at the API before there was any text.
    before: u64,
}

impl Metrics {
    pub fn new(host: Option<&OpenAi>) -> Self {
        let mut registry = Registry::with_prefix("proxytune");
        let (counts, shifted) = (Counts::new(&mut registry), Counter::default());
        let help = "Positions whose most likely visible token the shift changed";
        registry.register("shifted_tokens", help, shifted.clone());
        let before = host.map_or(0, |host| calls(&spent(host)));
        Self { registry, counts, shifted, before }
    }

    /// A token was written.
    pub fn token(&self, event: &Event<'_>) {
        self.counts.generated(1);
        self.shifted.inc_by(u64::from(event.is_shifted));
    }
}

/// `GET /metrics`
pub fn respond(app: &App) -> Response {
    let Metrics { registry, counts, before, .. } = &app.metrics;
    let tokens = counts.all_generated();
    let upstream = |host: &OpenAi| -> Box<dyn Collector> {
        let spent = spent(host);
        // Of a call that was tried again only the one that was answered counts.
        let per_token = (tokens > 0).then(|| (calls(&spent) - before) as f64 / tokens as f64);
        Box::new(Upstream { spent, failures: host.failures(), per_token })
    };
    counts::respond(&app.admission, app.any_host().map(upstream), registry)
}

fn spent(host: &OpenAi) -> Spent {
    crate::host::blackbox::BlackBox::spent(host)
}

fn calls(spent: &Spent) -> u64 {
    spent.requests - spent.retries
}

/// What the host was asked.
#[derive(Debug)]
struct Upstream {
    spent: Spent,
    failures: Vec<(Failure, u64)>,
    per_token: Option<f64>,
}

impl Collector for Upstream {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Spent { requests, retries, prompt_tokens, completion_tokens, cost } = self.spent;
        let counts = [
            ("upstream_requests", "Requests to the host, repeated ones included.", requests),
            ("upstream_retries", "Those of them that were repeated after a failure.", retries),
            ("upstream_prompt_tokens", "Tokens that the host has read.", prompt_tokens),
            ("upstream_completion_tokens", "Tokens that the host has written.", completion_tokens),
        ];
        for (name, help, value) in counts {
            one(&mut encoder, name, help, None, &ConstCounter::new(value))?;
        }
        let help = "What that cost, by the prices that were given.";
        one(&mut encoder, "upstream_cost", help, None, &ConstCounter::new(cost))?;
        if let Some(calls) = self.per_token {
            let help = "Calls to the host for each token generated.";
            one(&mut encoder, "upstream_calls_per_token", help, None, &ConstGauge::new(calls))?;
        }
        let help = "Failures of the host by HTTP status or kind, those that were tried again included.";
        let mut family = encoder.encode_descriptor("upstream_failures", help, None, MetricType::Counter)?;
        self.failures.iter().try_for_each(|(kind, count)| {
            let labels = [("kind", kind.to_string())];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)
        })
    }
}
