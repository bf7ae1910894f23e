//! GGUF files with another vocabulary: the same weights, tokens in another order, padded, with tokens added.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::Path;

/// Kinds of tokens, as llama.cpp numbers them.
pub const NORMAL: u32 = 1;
pub const CONTROL: u32 = 3;
pub const USER_DEFINED: u32 = 4;
pub const UNUSED: u32 = 5;

/// What stands at a place of the new vocabulary.
#[derive(Clone, Debug)]
pub enum Place {
    /// A token of the old one.
    Old(usize),
    /// A token that was never trained: its row of weights is zero.
    New(String, u32),
}

/// Values of a type that is not a list, in bytes.
const SIZES: [usize; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const TEXT: u32 = 8;
const LIST: u32 = 9;
const ALIGNMENT: usize = 32;

/// A file in parts. Only float32 tensors are understood.
pub struct Gguf {
    /// In their order: name, type, and value as it stands in the file.
    keys: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
}

struct Tensor {
    name: String,
    shape: Vec<u64>,
    data: Vec<u8>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }
    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.bytes(len).to_vec()).unwrap()
    }
    /// A value as it stands there.
    fn value(&mut self, kind: u32) -> Vec<u8> {
        let before = self.0;
        match kind {
            TEXT => drop(self.text()),
            LIST => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| drop(self.value(kind)));
            }
            kind => drop(self.bytes(SIZES[kind as usize])),
        }
        before[..before.len() - self.0.len()].to_vec()
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn list(kind: u32, values: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &values.concat()].concat()
}

impl Gguf {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader(&bytes);
        assert_eq!(reader.bytes(4), b"GGUF");
        assert_eq!(reader.u32(), 3);
        let (tensors, keys) = (reader.u64(), reader.u64());
        let mut key = || {
            let (name, kind) = (reader.text(), reader.u32());
            (name, kind, reader.value(kind))
        };
        let keys = (0..keys).map(|_| key()).collect();
        let mut info = || {
            let (name, dimensions) = (reader.text(), reader.u32());
            let shape: Vec<u64> = (0..dimensions).map(|_| reader.u64()).collect();
            assert_eq!(reader.u32(), 0, "{name} is not float32");
            (name, shape, reader.u64() as usize)
        };
        let infos: Vec<_> = (0..tensors).map(|_| info()).collect();
        let data = &bytes[(bytes.len() - reader.0.len()).next_multiple_of(ALIGNMENT)..];
        let tensor = |(name, shape, at): (String, Vec<u64>, usize)| {
            let size = 4 * shape.iter().product::<u64>() as usize;
            Tensor { name, shape, data: data[at..at + size].to_vec() }
        };
        Self { keys, tensors: infos.into_iter().map(tensor).collect() }
    }

    pub fn write(&self, path: &Path) {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (name, kind, value) in &self.keys {
            out.extend([text(name), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        let mut at = 0;
        for Tensor { name, shape, data } in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(0u32.to_le_bytes());
            out.extend((at as u64).to_le_bytes());
            at += data.len().next_multiple_of(ALIGNMENT);
        }
        for Tensor { data, .. } in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(data);
        }
        std::fs::write(path, out).unwrap();
    }

    /// Gives it a chat template, which it must lack.
    pub fn add_chat_template(&mut self, template: &str) {
        self.keys.push(("tokenizer.chat_template".into(), TEXT, text(template)));
    }

    fn key(&mut self, name: &str) -> &mut Vec<u8> {
        let name = format!("tokenizer.ggml.{name}");
        &mut self.keys.iter_mut().find(|(key, ..)| *key == name).unwrap().2
    }

    /// The entries of a list, as they stand in the file.
    fn entries(&mut self, name: &str) -> Vec<Vec<u8>> {
        let value = self.key(name).clone();
        let mut reader = Reader(&value);
        let (kind, count) = (reader.u32(), reader.u64());
        (0..count).map(|_| reader.value(kind)).collect()
    }

    /// Number of tokens.
    pub fn vocab(&mut self) -> usize {
        self.entries("tokens").len()
    }

    /// Gives it another vocabulary, in which every old token must have a place.
    pub fn revocab(&mut self, places: &[Place]) {
        let [tokens, kinds] = ["tokens", "token_type"].map(|name| self.entries(name));
        let token = |place: &Place| match place {
            Place::Old(old) => (tokens[*old].clone(), kinds[*old].clone()),
            Place::New(name, kind) => (text(name), kind.to_le_bytes().to_vec()),
        };
        let (new_tokens, new_kinds): (Vec<_>, Vec<_>) = places.iter().map(token).unzip();
        *self.key("tokens") = list(TEXT, &new_tokens);
        *self.key("token_type") = list(5, &new_kinds);
        let new = new_ids(places);
        for name in ["bos_token_id", "eos_token_id", "padding_token_id"] {
            let id = self.key(name);
            let old = u32::from_le_bytes(id[..].try_into().unwrap());
            *id = new[&(old as usize)].to_le_bytes().to_vec();
        }
        let size = self.keys.iter_mut().find(|(key, ..)| key == "llama.vocab_size").unwrap();
        size.2 = (places.len() as u32).to_le_bytes().to_vec();
        for tensor in
            self.tensors.iter_mut().filter(|t| ["token_embd.weight", "output.weight"].contains(&&*t.name))
        {
            let width = 4 * tensor.shape[0] as usize;
            let row = |place: &Place| match place {
                Place::Old(old) => tensor.data[old * width..][..width].to_vec(),
                Place::New(..) => vec![0; width],
            };
            tensor.data = places.iter().flat_map(row).collect();
            tensor.shape[1] = places.len() as u64;
        }
    }
}

/// Where each old token stands now.
pub fn new_ids(places: &[Place]) -> HashMap<usize, u32> {
    let old = |(new, place): (usize, &Place)| match place {
        Place::Old(old) => Some((*old, new as u32)),
        Place::New(..) => None,
    };
    places.iter().enumerate().filter_map(old).collect()
}
