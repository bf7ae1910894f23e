//! From the wish to stop to the end of the last request.

use super::connections::{self, Limits};
use crate::error::Result;
use axum::Router;
use std::future::Future;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Waits for SIGINT or SIGTERM.
pub async fn signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

/// Serves until `stop`; then takes no more requests, turns away those that wait by `close`, and gives those that run `grace` to
/// finish.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    close: impl FnOnce() + Send + 'static,
    stop: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> Result<()> {
    let (stopping, stopped) = oneshot::channel();
    let told = async move {
        stop.await;
        close();
        let _ = stopping.send(());
    };
    let serving = connections::serve(listener, router, limits, told);
    let overdue = async {
        let _ = stopped.await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        () = serving => {}
        () = overdue => tracing::warn!("requests that ran longer than {} s were cut off", grace.as_secs()),
    }
    Ok(())
}
