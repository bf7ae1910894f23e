//! Logits in the memory of another library's tensor, through DLPack.

use dlpark::DlpackElement;
use dlpark::DlpackFlags;
use dlpark::ffi::{DLDataType, DLDevice, DLDeviceType};
use dlpark::python::{ImportRequest, ImportedDlpack};
use half::{bf16, f16};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use proxytune::host::requests::Logits;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::marker::PhantomData;

#[derive(Clone, Copy)]
enum Format {
    F32,
    F16,
    Bf16,
}

/// A tensor of shape (rows, width) or (width), whose memory it keeps.
pub struct Tensor {
    data: *mut u8,
    rows: usize,
    width: usize,
    /// From one row to the next, in values.
    stride: usize,
    format: Format,
    _memory: ImportedDlpack,
}

/// The rows of a tensor, for a thread that does not hold the interpreter's lock.
pub struct Rows<'a> {
    data: *mut u8,
    rows: usize,
    width: usize,
    stride: usize,
    format: Format,
    _tensor: PhantomData<&'a mut Tensor>,
}

// SAFETY: the memory belongs to the tensor that the lifetime borrows, and rows do not overlap.
unsafe impl Send for Rows<'_> {}

impl Tensor {
    /// Takes a tensor with `__dlpack__`, or any object with a buffer.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let source = if object.hasattr("__dlpack__")? {
            object.clone()
        } else {
            let array = object.py().import("numpy")?.call_method1("asarray", (object,))?;
            // A list would be copied, and the shift lost.
            if !array.getattr("flags")?.getattr("owndata")?.extract::<bool>()? {
                array
            } else {
                return Err(PyTypeError::new_err(format!(
                    "logits: got {}, expected a CPU tensor (DLPack) or an object with a buffer, to be changed in place",
                    object.get_type().name()?
                )));
            }
        };
        if let Some(graph) = source.getattr_opt("requires_grad")?
            && graph.is_truthy()?
        {
            let what = "logits: the tensor is part of a gradient's graph; give logits.detach()";
            return Err(PyValueError::new_err(what));
        }
        let bfloat16 = as_bits(&source)?;
        let source = bfloat16.as_ref().unwrap_or(&source);
        let refused = |error: PyErr| not_handed_over(object.py(), &error);
        let request = ImportRequest::new(source.as_borrowed()).map_err(refused)?;
        if let Ok(device) = request.device() {
            on_cpu(device)?;
        }
        let memory = request.import(None, None).map_err(refused)?;
        Self::from_dlpack(memory, bfloat16.map(|_| Format::Bf16))
    }

    /// `known`: the format, where the tensor cannot say it.
    fn from_dlpack(memory: ImportedDlpack, known: Option<Format>) -> PyResult<Self> {
        let wrong = |what: String| Err(PyValueError::new_err(format!("logits: {what}")));
        if memory.flags().intersects(DlpackFlags::READ_ONLY | DlpackFlags::IS_COPIED) {
            return wrong("the tensor is read-only, or a copy: give one that can be changed in place".into());
        }
        let tensor = memory.validate().map_err(|e| PyValueError::new_err(format!("logits: {e}")))?;
        on_cpu(tensor.device())?;
        let Some(format) = known.or_else(|| format(tensor.dtype())) else {
            return wrong("expected float32, float16 or bfloat16".into());
        };
        let shape: Vec<usize> = tensor.shape().iter().map(|&n| n as usize).collect();
        let strides = tensor.strides_or_compact().map_err(|e| PyValueError::new_err(e.to_string()))?;
        let (rows, width, stride, step) = match (&*shape, &*strides) {
            (&[width], &[step]) => (1, width, width as i64, step),
            (&[rows, width], &[stride, step]) => (rows, width, stride, step),
            _ => {
                return wrong(format!(
                    "got {} dimensions, expected (rows, vocabulary) or (vocabulary)",
                    shape.len()
                ));
            }
        };
        // Of a tensor without values strides say nothing.
        if rows * width > 0 && ((step != 1 && width > 1) || (rows > 1 && stride < width as i64)) {
            return wrong(format!(
                "got strides {strides:?}, expected rows that are contiguous and do not overlap"
            ));
        }
        // SAFETY: the pointer is only moved, within the allocation that the tensor describes.
        let data = unsafe { tensor.offset_bytes_ptr() }.map_err(|e| PyValueError::new_err(e.to_string()))?;
        let data = data.cast_mut();
        Ok(Self { data, rows, width, stride: stride.max(0) as usize, format, _memory: memory })
    }

    /// Whether there are as many rows as expected, each at least `vocab` long.
    pub fn check_shape(&self, rows: usize, vocab: usize) -> PyResult<()> {
        if self.rows == rows && self.width >= vocab {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "logits: got shape ({}, {}), expected ({rows}, {vocab}), or longer rows whose rest is padding",
            self.rows, self.width
        )))
    }

    /// All rows.
    pub fn split(&mut self) -> Rows<'_> {
        let Self { data, rows, width, stride, format, .. } = *self;
        Rows { data, rows, width, stride, format, _tensor: PhantomData }
    }

    /// All rows as one slice, and the values from one row to the next.
    pub fn float32(&mut self) -> PyResult<(&mut [f32], usize)> {
        let Format::F32 = self.format else {
            return Err(PyTypeError::new_err("out: expected float32"));
        };
        let Some(others) = self.rows.checked_sub(1) else { return Ok((&mut [], self.width)) };
        let len = others * self.stride + self.width;
        // SAFETY: from the first value of the first row to the last of the last one; what is between rows is the
        // tensor's memory as well.
        Ok((unsafe { values(self.data, 0, len) }, self.stride.max(self.width)))
    }
}

impl<'a> Rows<'a> {
    /// The first `width` values of each row.
    pub fn narrow(self, width: usize) -> impl Iterator<Item = Logits<'a>> + Send {
        let width = width.min(self.width);
        (0..self.rows).map(move |row| self.row(row, width))
    }

    /// Called once for each row, by `narrow`.
    fn row(&self, row: usize, width: usize) -> Logits<'a> {
        let at = row * self.stride;
        // SAFETY: DLPack's shape and strides say that these values are in the tensor's memory, in this format; rows do
        // not overlap, and each is handed out once.
        unsafe {
            match self.format {
                Format::F32 => Logits::F32(values(self.data, at, width)),
                Format::F16 => Logits::F16(values(self.data, at, width)),
                Format::Bf16 => Logits::Bf16(values(self.data, at, width)),
            }
        }
    }
}

/// # Safety
/// `width` values of `T` stand at the `at`-th, and nobody else looks at them.
unsafe fn values<'a, T>(data: *mut u8, at: usize, width: usize) -> &'a mut [T] {
    // SAFETY: the caller's word.
    unsafe { std::slice::from_raw_parts_mut(data.cast::<T>().add(at), width) }
}

fn format(kind: DLDataType) -> Option<Format> {
    let formats = [(f32::DTYPE, Format::F32), (f16::DTYPE, Format::F16), (bf16::DTYPE, Format::Bf16)];
    formats.into_iter().find(|(known, _)| *known == kind).map(|(_, format)| format)
}

/// The bits of an array of the package `ml_dtypes`: numpy itself has no bfloat16, and hands none over.
fn as_bits<'py>(source: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Ok(array) = source.cast::<PyUntypedArray>() else { return Ok(None) };
    let bfloat16 = array.dtype().getattr("name")?.extract::<String>()? == "bfloat16";
    bfloat16.then(|| array.call_method1("view", ("uint16",))).transpose()
}

/// What a library's tensor says when it gives its memory to nobody; libraries differ in the exception that they take.
fn not_handed_over(py: Python<'_>, error: &PyErr) -> PyErr {
    let said = error.value(py).to_string();
    let said = said.lines().next().unwrap_or_default();
    PyValueError::new_err(format!(
        "logits: the tensor's memory cannot be had through DLPack ({said}); give one on the CPU"
    ))
}

fn on_cpu(device: DLDevice) -> PyResult<()> {
    match device.device_type {
        DLDeviceType::CPU | DLDeviceType::CUDAHOST | DLDeviceType::ROCMHOST => Ok(()),
        other => Err(PyValueError::new_err(format!(
            "logits: the tensor is on a device (DLPack type {}, number {}), and shift_ works in the CPU's memory: take \
             offsets() and add them there, or move the tensor",
            other.0, device.device_id
        ))),
    }
}
