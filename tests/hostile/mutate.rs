//! Broken versions of good files: what a bad disk, a bad tool or a bad person makes of them.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::path::PathBuf;

/// One change.
#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, usize),
    /// Takes a piece once more, several times.
    Repeat(Index, usize, usize),
    Cut(Index),
}

/// What parsers stumble over.
#[rustfmt::skip]
const NASTY: &[&str] = &[
    "\0", "\u{feff}", "\r\n", "\"", "'", "\\", "{", "}", "[", "]", "[[", "]]", "{{", "}}", "{%", "%}", "#",
    "=", ",", ":", "-", "nan", "inf", "null", "true", "1e999", "-1", "0", "18446744073709551616",
    "4294967295", "9223372036854775807", "\\ud800", "\u{202e}", "\u{1f600}", "a.b.c = 1\n",
    "[proxy_tuning]\n", "{\"\":", "<|im_end|>", "%s%n", "../../etc/passwd",
];

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    let bytes = prop_oneof![
        4 => select(NASTY).prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 1..8),
    ];
    prop_oneof![
        3 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        4 => (at(), bytes).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        3 => (at(), 1..64usize).prop_map(|(at, len)| Edit::Delete(at, len)),
        2 => (at(), 1..32usize, 1..200usize).prop_map(|(at, len, times)| Edit::Repeat(at, len, times)),
        1 => at().prop_map(Edit::Cut),
    ]
}

fn apply(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let place = |at: &Index| at.index(bytes.len() + 1);
        let piece = |at: &Index, len: usize| place(at)..bytes.len().min(place(at) + len);
        match edit {
            Edit::Set(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Edit::Set(..) => {}
            Edit::Insert(at, new) => {
                let at = place(at);
                bytes.splice(at..at, new.iter().copied());
            }
            Edit::Delete(at, len) => drop(bytes.drain(piece(at, *len))),
            Edit::Repeat(at, len, times) => {
                let piece = piece(at, *len);
                let (at, again) = (piece.end, bytes[piece].repeat(*times));
                bytes.splice(at..at, again);
            }
            Edit::Cut(at) => bytes.truncate(place(at)),
        }
    }
    bytes
}

/// The files of a folder of the corpus, as they are and broken in up to eight places.
pub fn mutated(folder: &str) -> impl Strategy<Value = Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus").join(folder);
    let mut seeds: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    seeds.sort();
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|path| std::fs::read(path).unwrap()).collect();
    (select(seeds), vec(edit(), 0..8)).prop_map(|(seed, edits)| apply(seed, &edits))
}
