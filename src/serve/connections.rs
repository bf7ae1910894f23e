//! What one client can take of a server: its connections, and the time to send a request or to read an answer.

use super::error::ApiError;
use crate::config::Server;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};

/// How long a listener rests after an error, such as no file descriptor left.
const REST: Duration = Duration::from_millis(500);

/// The share of all places that makes a crowd when no more than it is free.
const CROWDED: usize = 4;

/// Connections that may wait at the door, if the system's own limit is not lower.
const WAITING: u32 = 4096;

/// What clients are held to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; who comes then waits at the door.
    connections: usize,
    /// Time for a request's head, the same again for its body, and for a client to read on.
    patience: Duration,
    /// Bytes of a body.
    body: usize,
}

impl From<&Server> for Limits {
    fn from(server: &Server) -> Self {
        Self {
            connections: server.max_connections,
            patience: Duration::from_secs(server.client_timeout),
            body: server.max_body << 20,
        }
    }
}

/// Listens on the first address of a name and a port that can be had.
pub async fn listen(address: (&str, u16)) -> io::Result<TcpListener> {
    let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in lookup_host(address).await? {
        let listen = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // A server that is started again takes the address of the one before.
            #[cfg(unix)]
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(WAITING)
        };
        match listen() {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Serves until `stop`, then takes no more connections, and lets those that it has finish their requests.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let crowd = (places.clone(), limits.connections / CROWDED);
    let router = router.layer(from_fn_with_state(crowd, make_room));
    let stopping = watch::Sender::new(false);
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            (stream, place) = accept(&listener, &places) => {
                let connection = answer(stream, router.clone(), limits.patience, stopping.subscribe());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            () = &mut stop => break,
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let _ = places.acquire_many(limits.connections as u32).await;
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let place = match places.clone().acquire_owned().await {
        Ok(place) => place,
        Err(_) => std::future::pending().await,
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // Gone before it was taken.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => {
                tracing::warn!("no connection can be taken: {e}");
                sleep(REST).await;
            }
        }
    }
}

/// Answers the requests of one connection, one after the other.
async fn answer(stream: TcpStream, router: Router, patience: Duration, mut stopping: watch::Receiver<bool>) {
    // A token that is ready waits for no other.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, patience));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(io, TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = pin!(connection);
    let stops = async { drop(stopping.wait_for(|&stops| stops).await) };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stops => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("a connection ended: {error}");
    }
}

/// Where few places are left a client keeps its own for no longer than one request.
async fn make_room(
    State((places, few)): State<(Arc<Semaphore>, usize)>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if places.available_permits() > few { response } else { last(response) }
}

/// Reads a body to its end before anything is done with the request.
pub async fn whole_body(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match timeout(limits.patience, Limited::new(body, limits.body).collect()).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body.to_bytes()))).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message =
                format!("the body is larger than the {} MiB that this server takes", limits.body >> 20);
            last(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large"))
        }
        Ok(Err(error)) => {
            last(ApiError::new(StatusCode::BAD_REQUEST, format!("the body breaks off: {error}")))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} s", limits.patience.as_secs());
            last(ApiError::new(StatusCode::REQUEST_TIMEOUT, message).code("body_timeout"))
        }
    }
}

/// The last answer of its connection.
fn last(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A connection whose client must take what is written for it within a time.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while the client takes nothing.
    overdue: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, overdue: None }
    }

    /// What a write has come to, or that it has been too long.
    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.overdue = None;
            return written;
        }
        let overdue = self.overdue.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        ready!(overdue.as_mut().poll(context));
        let message = format!("the client has read nothing for {} s", self.patience.as_secs());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, post};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    const LIMITS: Limits = Limits { connections: 1, patience: Duration::from_millis(200), body: 1 << 20 };
    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    /// A server of one connection at a time, and what stops it.
    async fn start() -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        start_with(1).await
    }

    async fn start_with(connections: usize) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let limits = Limits { connections, ..LIMITS };
        let router = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/large", get(|| async { vec![b'a'; 64 << 20] }))
            .route("/length", post(|body: axum::body::Bytes| async move { body.len().to_string() }))
            .layer(from_fn_with_state(limits, whole_body));
        let listener = listen(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        (address, stop, tokio::spawn(serve(listener, router, limits, stopped)))
    }

    async fn open(address: SocketAddr, sent: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        stream
    }

    async fn read(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        // Closed in whatever way.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    async fn ask(address: SocketAddr, sent: &str) -> String {
        read(open(address, sent).await).await
    }

    #[tokio::test]
    async fn who_says_nothing_or_half_or_does_not_read_makes_room_for_the_next() {
        let (address, _stop, _) = start().await;
        for sent in [
            "",
            "GET / HT",
            &GET.replace("connection: close\r\n", ""),
            "GET /large HTTP/1.1\r\nhost: a\r\n\r\n",
        ] {
            let lazy = open(address, sent).await;
            assert!(ask(address, GET).await.ends_with("here"), "after {sent:?}");
            drop(lazy);
        }
    }

    #[tokio::test]
    async fn a_crowd_keeps_no_connection_open() {
        let (address, _stop, _) = start_with(8).await;
        let kept = GET.replace("connection: close\r\n", "");
        let mut streams = Vec::new();
        for (others, closes) in [(0, false), (7, true)] {
            while streams.len() < others {
                streams.push(open(address, "").await);
            }
            let (mut stream, mut answer) = (open(address, &kept).await, [0; 256]);
            let length = stream.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.ends_with("here") && answer.contains("connection: close") == closes, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_body_has_a_size_and_a_time() {
        let (address, _stop, _) = start().await;
        let head =
            |length: usize| format!("POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
        let large = "a".repeat(LIMITS.body + 1);
        for (length, sent, status, said) in
            [(3, "abc", 200, "3"), (4, "abc", 408, "body_timeout"), (large.len(), &large[..], 413, "1 MiB")]
        {
            let answer = ask(address, &(head(length) + sent)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(said), "{answer}");
        }
    }

    #[tokio::test]
    async fn who_is_being_answered_is_answered_to_the_end() {
        let (address, stop, serving) = start().await;
        let mut stream = open(address, &GET.replace("/ ", "/large ")).await;
        stream.read_exact(&mut [0; 1024]).await.unwrap();
        stop.send(()).unwrap();
        assert!(read(stream).await.len() > (64 << 20) - 1024);
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
