//! Tokens as Python hands them over: lists, arrays, tensors.

use numpy::{PyArray1, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use proxytune::vocab::Token;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// One history.
pub fn tokens(object: &Bound<'_, PyAny>) -> PyResult<Vec<Token>> {
    if let Ok(list) = object.cast::<PyList>() {
        return list.iter().map(|token| one(&token)).collect();
    }
    if let Ok(tuple) = object.cast::<PyTuple>() {
        return tuple.iter().map(|token| one(&token)).collect();
    }
    let array = object.py().import("numpy")?.call_method1("ascontiguousarray", (object,))?;
    let array = array.cast_into::<PyUntypedArray>()?;
    if array.ndim() != 1 {
        return Err(PyValueError::new_err(format!("got {} dimensions, expected 1", array.ndim())));
    }
    if let Ok(array) = array.cast::<PyArray1<i64>>() {
        return array.readonly().as_slice()?.iter().map(|&token| whole(token)).collect();
    }
    if let Ok(array) = array.cast::<PyArray1<i32>>() {
        return array.readonly().as_slice()?.iter().map(|&token| whole(token.into())).collect();
    }
    if let Ok(array) = array.cast::<PyArray1<u32>>() {
        return Ok(array.readonly().as_slice()?.to_vec());
    }
    let (given, kind) = (object.get_type().name()?, array.dtype());
    Err(PyTypeError::new_err(format!("got {given} of {kind}, expected token ids")))
}

/// A batch of histories: a sequence of them, or an array or tensor with one in each row.
pub fn histories(object: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<Token>>> {
    let mut histories = Vec::new();
    for (at, history) in object.try_iter()?.enumerate() {
        let history = tokens(&history?).map_err(|e| named(object.py(), &e, at))?;
        if history.is_empty() {
            let what = format!("histories[{at}]: no tokens, expected at least one");
            return Err(PyValueError::new_err(what));
        }
        histories.push(history);
    }
    Ok(histories)
}

/// The error again, with the place of its history.
fn named(py: Python<'_>, error: &PyErr, at: usize) -> PyErr {
    PyErr::from_type(error.get_type(py), format!("histories[{at}]: {}", error.value(py)))
}

pub fn one(token: &Bound<'_, PyAny>) -> PyResult<Token> {
    match token.extract::<i64>() {
        Ok(token) => whole(token),
        Err(_) => Err(PyTypeError::new_err(format!(
            "got {} among the tokens, expected ids",
            token.get_type().name()?
        ))),
    }
}

fn whole(token: i64) -> PyResult<Token> {
    Token::try_from(token)
        .map_err(|_| PyValueError::new_err(format!("got token {token}, expected ids from 0")))
}
