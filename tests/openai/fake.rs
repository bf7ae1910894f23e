//! A server that does as it is told, byte by byte.

use serde_json::Value;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: String,
    /// Sent one after the other, with a moment between them.
    pub chunks: Vec<Vec<u8>>,
    /// Bytes that are promised and never sent; the connection is then closed.
    pub missing: usize,
    /// Nothing more is sent, and the connection stays open.
    pub hangs: bool,
}

impl Reply {
    pub fn new(status: u16, body: &str) -> Self {
        let json = "content-type: application/json\r\n".into();
        Self { status, headers: json, chunks: vec![body.into()], missing: 0, hangs: false }
    }

    /// A stream of events, each in a chunk of its own.
    pub fn events(events: &[String]) -> Self {
        let chunks = events.iter().map(|event| format!("data: {event}\n\n").into_bytes()).collect();
        Self { headers: "content-type: text/event-stream\r\n".into(), chunks, ..Self::new(200, "") }
    }

    /// The same cut into pieces of `size` bytes.
    pub fn cut(self, size: usize) -> Self {
        let chunks = self.chunks.concat().chunks(size).map(<[u8]>::to_vec).collect();
        Self { chunks, ..self }
    }
}

/// Chooses the answer to a request by its path and body.
pub type Script = dyn FnMut(&str, &Value) -> Reply + Send;

/// A running server, with all that it was asked.
pub struct Fake {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<(String, Value)>>>,
    /// Heads as they came.
    pub heads: Arc<Mutex<Vec<String>>>,
    /// Connections that the client closed while an answer hung.
    pub left: Arc<Mutex<usize>>,
}

impl Fake {
    pub async fn start(script: impl FnMut(&str, &Value) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            heads: Arc::default(),
            left: Arc::default(),
        };
        let (requests, heads, left) = (fake.requests.clone(), fake.heads.clone(), fake.left.clone());
        let script: Arc<Mutex<Box<Script>>> = Arc::new(Mutex::new(Box::new(script)));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (requests, heads, left, script) =
                    (requests.clone(), heads.clone(), left.clone(), script.clone());
                tokio::spawn(async move {
                    let Some((head, path, body)) = read(&mut stream).await else { return };
                    heads.lock().unwrap().push(head);
                    requests.lock().unwrap().push((path.clone(), body.clone()));
                    let reply = (script.lock().unwrap())(&path, &body);
                    if send(&mut stream, reply).await.is_none() {
                        *left.lock().unwrap() += 1;
                    }
                });
            }
        });
        fake
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests to a path.
    pub fn asked(&self, path: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|(p, _)| p == path).count()
    }
}

async fn read(stream: &mut TcpStream) -> Option<(String, String, Value)> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.ok().filter(|&n| n > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = head
            .lines()
            .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let length: usize = length.unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or(Value::Null);
            let path = head.split(' ').nth(1)?.to_owned();
            return Some((head, path, body));
        }
    }
}

/// `None` where the client left while the answer hung.
async fn send(stream: &mut TcpStream, reply: Reply) -> Option<()> {
    let length: usize = reply.chunks.iter().map(Vec::len).sum::<usize>() + reply.missing;
    let length = if reply.hangs { length + 1 } else { length };
    let head = format!(
        "HTTP/1.1 {} x\r\n{}content-length: {length}\r\nconnection: close\r\n\r\n",
        reply.status, reply.headers
    );
    stream.write_all(head.as_bytes()).await.ok();
    for chunk in reply.chunks {
        stream.write_all(&chunk).await.ok();
        stream.flush().await.ok();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if reply.hangs {
        let mut buffer = [0; 1];
        let gone = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await;
        return if matches!(gone, Ok(Ok(0) | Err(_))) { None } else { Some(()) };
    }
    Some(())
}

/// Answers in order; the last one again and again.
pub fn in_order(replies: Vec<Reply>) -> impl FnMut() -> Reply + Send {
    let mut left: VecDeque<Reply> = replies.into();
    move || if left.len() > 1 { left.pop_front().unwrap() } else { left[0].clone() }
}
