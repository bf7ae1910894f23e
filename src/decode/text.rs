//! From tokens' bytes to text that can be shown: whole characters only, and never part of a stop string.

/// Turns the bytes of one sequence's tokens into text as they come.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    bytes: Vec<u8>,
    shown: usize,
    stops: Vec<Vec<u8>>,
}

impl TextStream {
    /// A stream that ends before the first of `stops`; empty ones are passed over.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).map(|s| s.clone().into_bytes()).collect();
        Self { bytes: Vec::new(), shown: 0, stops }
    }

    /// Takes in a token's bytes. Returns whether a stop string is complete: it and all after it are cut off.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        let longest = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let from = self.bytes.len().saturating_sub(longest);
        self.bytes.extend_from_slice(piece);
        let find = |stop: &Vec<u8>| self.bytes[from..].windows(stop.len()).position(|w| w == stop.as_slice());
        match self.stops.iter().filter_map(find).min() {
            Some(at) => {
                self.bytes.truncate(from + at);
                true
            }
            None => false,
        }
    }

    /// What can be shown now and has not been.
    pub fn take(&mut self) -> String {
        let end = self.bytes.len() - self.open_stop().max(open_character(&self.bytes));
        self.show(end)
    }

    /// All that is left: a stop string or character that was begun will not be completed.
    pub fn finish(&mut self) -> String {
        self.show(self.bytes.len())
    }

    /// All text so far; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn show(&mut self, end: usize) -> String {
        let end = end.max(self.shown);
        let text = String::from_utf8_lossy(&self.bytes[self.shown..end]).into_owned();
        self.shown = end;
        text
    }

    /// Length of the longest end that begins a stop string.
    fn open_stop(&self) -> usize {
        let begun = |stop: &Vec<u8>| (1..stop.len()).rev().find(|&n| self.bytes.ends_with(&stop[..n]));
        self.stops.iter().filter_map(begun).max().unwrap_or(0)
    }
}

/// Length of an end that is the beginning of a UTF-8 character.
fn open_character(bytes: &[u8]) -> usize {
    let end = &bytes[bytes.len().saturating_sub(3)..];
    let Some(back) = end.iter().rev().position(|&b| b & 0xc0 != 0x80) else { return 0 };
    let needed = match end[end.len() - 1 - back] {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    if back + 1 < needed { back + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_split_over_tokens_come_out_whole() {
        let mut stream = TextStream::new(&[]);
        let euro = "€".as_bytes();
        stream.push(b"5 ");
        stream.push(&euro[..1]);
        assert_eq!(stream.take(), "5 ");
        stream.push(&euro[1..2]);
        assert_eq!(stream.take(), "");
        stream.push(&euro[2..]);
        assert_eq!(stream.take(), "€");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn a_stop_string_over_several_tokens_never_shows() {
        let mut stream = TextStream::new(&["END".into(), String::new()]);
        assert!(!stream.push(b"one E"));
        assert_eq!(stream.take(), "one ");
        assert!(!stream.push(b"N"));
        assert_eq!(stream.take(), "");
        assert!(stream.push(b"D two"));
        assert_eq!(stream.finish() + "|" + &stream.text(), "|one ");
    }

    #[test]
    fn a_stop_string_that_was_only_begun_shows_in_the_end() {
        let mut stream = TextStream::new(&["END".into()]);
        stream.push(b"EN");
        assert_eq!(stream.take(), "");
        stream.push(b"C");
        assert_eq!(stream.take(), "ENC");
        stream.push(b"E");
        assert_eq!(stream.take() + &stream.finish(), "E");
    }

    #[test]
    fn broken_utf8_is_replaced_and_never_held_back_for_ever() {
        let mut stream = TextStream::new(&[]);
        stream.push(&[0xff, 0x80, 0x80, 0x80, b'a']);
        assert!(stream.take().ends_with('a'));
    }
}
