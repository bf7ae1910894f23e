//! Files of records: JSON lines or one JSON document, gzipped or not, and what is said of a record that is wrong.

use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// Bytes that a gzipped file may unpack to: a small file can hold more than memory does.
const MAX_UNPACKED: u64 = 256 << 20;

/// Reads a file as text; gzipped ones are unpacked.
///
/// # Errors
/// [`Error::File`] when it cannot be read, is not text in UTF-8, is empty, or unpacks to more than 256 MiB.
pub fn read_text(path: &Path) -> Result<String> {
    let failed =
        |e: std::io::Error| Error::file(path, format!("cannot be read ({e})"), "give the path of a file");
    let mut bytes = std::fs::read(path).map_err(failed)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(&bytes[..])
            .take(MAX_UNPACKED + 1)
            .read_to_end(&mut unpacked)
            .map_err(|e| Error::file(path, format!("is gzipped, but broken ({e})"), "download it again"))?;
        if unpacked.len() as u64 > MAX_UNPACKED {
            let what = format!("is gzipped and holds more than {} MiB", MAX_UNPACKED >> 20);
            return Err(Error::file(path, what, "unpack it, or give a part of it"));
        }
        bytes = unpacked;
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::file(path, format!("holds a byte that is not UTF-8 at offset {at}"), "give a text in UTF-8")
    })?;
    if text.trim().is_empty() {
        return Err(Error::file(path, "is empty", "give a file with at least one item"));
    }
    Ok(text)
}

/// The records of a file.
pub(super) struct Records<'a> {
    path: &'a Path,
    all: Vec<(String, Value)>,
}

impl<'a> Records<'a> {
    /// Reads JSON lines, or one JSON document.
    ///
    /// # Errors
    /// As [`read_text`]; [`Error::File`] with the line that is not JSON.
    pub fn read(path: &'a Path) -> Result<Self> {
        Ok(Self { path, all: split(path, &read_text(path)?)? })
    }

    /// The first of them; nothing where there is none.
    pub fn first(&self) -> &Value {
        self.all.first().map_or(&Value::Null, |(_, record)| record)
    }

    /// Reads each of the first `limit` records.
    ///
    /// # Errors
    /// [`Error::File`] with the record and the field that is wrong.
    pub fn map<T>(&self, limit: usize, convert: fn(&Value) -> Field<T>) -> Result<Vec<T>> {
        let one = |(name, record): &(String, Value)| {
            if !record.is_object() {
                let what = format!("{name} is {}", kind_of(record));
                return Err(Error::file(self.path, what, "expected an object, such as {\"question\": …}"));
            }
            convert(record).map_err(|(field, what)| {
                let help = "correct that record, or say with --as what the file is";
                Error::file(self.path, format!("{name}: field `{field}`: {what}"), help)
            })
        };
        self.all.iter().take(limit).map(one).collect()
    }
}

/// All records of a text with what to call them in messages.
fn split(path: &Path, text: &str) -> Result<Vec<(String, Value)>> {
    let broken = |line: usize, e: &serde_json::Error| {
        let reason = e.to_string();
        let reason = reason.split(" at line ").next().unwrap_or(&reason);
        let what = format!("line {line} is not JSON ({reason}, column {})", e.column());
        Error::file(path, what, "expected one JSON object a line, or a JSON array of objects")
    };
    // Some editors begin a file with a mark.
    let text = text.trim_start_matches('\u{feff}');
    // A document over several lines, or an array: as a whole. TriviaQA keeps its records below `Data`.
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let first_line: serde_json::Result<Value> =
        serde_json::from_str(lines().next().map_or("", |(_, line)| line));
    if first_line.as_ref().is_ok_and(|record| record.is_object() && record.get("Data").is_none()) {
        let record = |(i, line): (usize, &str)| match serde_json::from_str(line) {
            Ok(value) => Ok((format!("line {}", i + 1), value)),
            Err(e) => Err(broken(i + 1, &e)),
        };
        return lines().map(record).collect();
    }
    let whole: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(e) => return Err(broken(e.line(), &e)),
    };
    let listed = match whole {
        Value::Array(records) => records,
        Value::Object(mut object) => match object.remove("Data") {
            Some(Value::Array(records)) => records,
            _ => vec![Value::Object(object)],
        },
        other => vec![other],
    };
    Ok(listed.into_iter().enumerate().map(|(i, record)| (format!("record {}", i + 1), record)).collect())
}

/// A value, or the field that is wrong and why.
pub(super) type Field<T> = std::result::Result<T, (String, String)>;

/// What a value is, for messages.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A field that is missing or not what was expected.
pub(super) fn wrong<T>(field: &str, value: Option<&Value>, expected: &str) -> Field<T> {
    let given = value.map_or("it is missing", kind_of);
    Err((field.into(), format!("{given}, expected {expected}")))
}

/// A field that is a text.
pub(super) fn string(record: &Value, field: &str) -> Field<String> {
    match record.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => wrong(field, other, "a text"),
    }
}
