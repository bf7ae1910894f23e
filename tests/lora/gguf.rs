//! As much of the GGUF format as it takes to change a model's weights, and to write an adapter.

use std::path::Path;

const ALIGNMENT: usize = 32;
const F32: u32 = 0;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// Bytes of a value of each type of metadata; strings and arrays (8 and 9) have no fixed length.
const WIDTH: [usize; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];

/// A tensor of a file, in ggml's order: inputs first.
#[derive(Clone)]
pub struct Place {
    pub name: String,
    pub shape: Vec<usize>,
    /// Where its values stand in the file.
    at: usize,
}

/// A model file in memory, its weights in float32.
pub struct Model {
    pub bytes: Vec<u8>,
    pub tensors: Vec<Place>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }
    fn text(&mut self) -> String {
        let len = self.u64();
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }
    fn skip(&mut self, kind: u32) {
        match kind {
            STRING => drop(self.text()),
            ARRAY => {
                let (of, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| self.skip(of));
            }
            kind => drop(self.take(WIDTH[kind as usize]).len()),
        }
    }
}

impl Model {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader { bytes: &bytes, at: 8 };
        let (tensors, keys) = (reader.u64(), reader.u64());
        for _ in 0..keys {
            reader.text();
            let kind = reader.u32();
            reader.skip(kind);
        }
        let mut tensors: Vec<Place> = (0..tensors)
            .map(|_| {
                let name = reader.text();
                let shape = (0..reader.u32()).map(|_| reader.u64()).collect();
                assert_eq!(reader.u32(), F32, "{name}");
                Place { name, shape, at: reader.u64() }
            })
            .collect();
        let data = reader.at.next_multiple_of(ALIGNMENT);
        tensors.iter_mut().for_each(|tensor| tensor.at += data);
        Self { bytes, tensors }
    }

    /// Adds `delta(row, column)` to a matrix.
    pub fn add(&mut self, tensor: &Place, delta: impl Fn(usize, usize) -> f32) {
        let width = tensor.shape[0];
        for (i, value) in
            self.bytes[tensor.at..].chunks_exact_mut(4).take(width * tensor.shape[1]).enumerate()
        {
            let old = f32::from_le_bytes((&*value).try_into().unwrap());
            value.copy_from_slice(&(old + delta(i / width, i % width)).to_le_bytes());
        }
    }
}

/// A value of metadata.
#[derive(Clone)]
pub enum Value {
    Text(&'static str),
    F32(f32),
    U32(u32),
}

/// A file to write: metadata, and tensors in float32.
#[derive(Clone)]
pub struct File {
    pub keys: Vec<(&'static str, Value)>,
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl File {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        let number = |out: &mut Vec<u8>, n: usize| out.extend((n as u64).to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            number(out, text.len());
            out.extend(text.as_bytes());
        };
        number(&mut out, self.tensors.len());
        number(&mut out, self.keys.len());
        for (key, value) in &self.keys {
            text(&mut out, key);
            match value {
                Value::Text(value) => {
                    out.extend(STRING.to_le_bytes());
                    text(&mut out, value);
                }
                Value::F32(value) => out.extend([6u32.to_le_bytes(), value.to_le_bytes()].concat()),
                Value::U32(value) => out.extend([4u32.to_le_bytes(), value.to_le_bytes()].concat()),
            }
        }
        let mut offset = 0;
        for (name, shape, values) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|&n| number(&mut out, n));
            out.extend(F32.to_le_bytes());
            number(&mut out, offset);
            offset += (values.len() * 4).next_multiple_of(ALIGNMENT);
        }
        for (_, _, values) in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }
}
