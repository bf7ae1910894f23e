//! Server-sent events out of chunks that may be cut anywhere, in the middle of a character too.

/// Bytes of one event that are kept, at most.
const LONGEST: usize = 8 << 20;

/// Puts events together.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
    /// Bytes at the front that are dealt with.
    read: usize,
}

impl Events {
    /// Takes in a chunk. Returns false where an event has grown beyond any measure.
    pub fn push(&mut self, chunk: &[u8]) -> bool {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(chunk);
        self.buffer.len() <= LONGEST
    }

    /// The data of the next whole event: lines `data:` up to an empty one.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let mut data: Option<Vec<u8>> = None;
        let mut at = self.read;
        while let Some(end) = self.buffer[at..].iter().position(|&b| b == b'\n') {
            let line = self.buffer[at..at + end].strip_suffix(b"\r").unwrap_or(&self.buffer[at..at + end]);
            at += end + 1;
            if line.is_empty() {
                self.read = at;
                match data.take() {
                    Some(data) => return Some(data),
                    None => continue,
                }
            }
            if let Some(value) = line.strip_prefix(b"data:") {
                let value = value.strip_prefix(b" ").unwrap_or(value);
                match &mut data {
                    Some(data) => data.extend([b"\n", value].concat()),
                    None => data = Some(value.to_vec()),
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_wherever_chunks_are_cut() {
        let text =
            "data: {\"a\":\"€\"}\n\n: still there\n\nevent: x\r\ndata: 1\r\ndata:2\r\n\r\ndata: [DONE]\n\n"
                .as_bytes();
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for chunk in text.chunks(size) {
                assert!(events.push(chunk));
                found.extend(std::iter::from_fn(|| events.next()));
            }
            let expected: [&[u8]; 3] = ["{\"a\":\"€\"}".as_bytes(), b"1\n2", b"[DONE]"];
            assert_eq!(found, expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let mut events = Events::default();
        assert!(!events.push(&vec![b'x'; LONGEST + 1]));
        assert_eq!(events.next(), None);
    }
}
