//! Rows as the C++ side lays them out, and what has to hold before anyone looks into them.

use cxx::{ExternType, type_id};
use half::{bf16, f16};
use proxytune::host::requests::{self, Logits, Outcome, RequestId};
use proxytune::vocab::Token;
use proxytune::{Error, Result};
use std::ffi::c_void;
use std::slice;

/// `proxytune::Row`; `logits_processor.cc` holds both layouts together.
#[repr(C)]
pub struct Row {
    request_id: u64,
    history: *const Token,
    history_size: usize,
    logits: *mut c_void,
    logits_size: usize,
    dtype: u8,
    status: u8,
}

// SAFETY: plain data of the same layout on both sides.
unsafe impl ExternType for Row {
    type Id = type_id!("proxytune::Row");
    type Kind = cxx::kind::Trivial;
}

/// `DType`, and the size and alignment of its values.
const DTYPES: [usize; 3] = [align_of::<f32>(), align_of::<f16>(), align_of::<bf16>()];

/// A row whose pointers can be followed.
#[repr(transparent)]
pub struct Checked(Row);

/// Checks what no engine can see later.
///
/// # Safety
/// Pointers of the rows that are not null are good for as many values as the rows say, for as long as the result lives.
///
/// # Errors
/// For a null history, and with `logits` for those that are null, not aligned or of no known type.
pub unsafe fn check(rows: &[Row], logits: bool) -> Result<&[Checked]> {
    for (at, row) in rows.iter().enumerate() {
        let invalid = |field, given: &dyn ToString, expected: &str| {
            Err(Error::invalid(format!("rows[{at}].{field}"), given.to_string(), expected))
        };
        if row.history.is_null() {
            return invalid("history", &"null", "all tokens up to this row");
        } else if !row.history.is_aligned() {
            return invalid("history", &"a pointer that is not aligned", "one to tokens of 32 bits");
        } else if !logits {
            continue;
        }
        let Some(align) = DTYPES.get(usize::from(row.dtype)) else {
            return invalid("dtype", &row.dtype, "kFloat32, kFloat16 or kBFloat16");
        };
        if row.logits.is_null() {
            return invalid("logits", &"null", "the row's logits");
        } else if row.logits.addr() % align != 0 {
            let given = "a pointer that is not aligned";
            return invalid("logits", &given, &format!("one to values of {align} bytes"));
        }
    }
    // SAFETY: `Checked` is `Row` with a promise, which has just been looked after.
    Ok(unsafe { slice::from_raw_parts(rows.as_ptr().cast(), rows.len()) })
}

/// As [`check`], for rows that are changed.
///
/// # Safety
/// As [`check`]; nobody else uses their logits meanwhile.
///
/// # Errors
/// As [`check`].
pub unsafe fn check_mut(rows: &mut [Row], logits: bool) -> Result<&mut [Checked]> {
    // SAFETY: as the caller promises.
    unsafe { check(rows, logits) }?;
    rows.iter_mut().for_each(|row| row.status = 0);
    // SAFETY: as in `check`.
    Ok(unsafe { slice::from_raw_parts_mut(rows.as_mut_ptr().cast(), rows.len()) })
}

impl requests::Row for Checked {
    fn request(&self) -> RequestId {
        self.0.request_id
    }

    fn history(&self) -> &[Token] {
        // SAFETY: not null and aligned; as long as the row says.
        unsafe { slice::from_raw_parts(self.0.history, self.0.history_size) }
    }

    fn logits(&mut self) -> Logits<'_> {
        let (values, len) = (self.0.logits, self.0.logits_size);
        // SAFETY: not null and aligned to its type; as long as the row says, and nobody else's during the call.
        unsafe {
            match self.0.dtype {
                0 => Logits::F32(slice::from_raw_parts_mut(values.cast(), len)),
                1 => Logits::F16(slice::from_raw_parts_mut(values.cast(), len)),
                _ => Logits::Bf16(slice::from_raw_parts_mut(values.cast(), len)),
            }
        }
    }

    fn report(&mut self, outcome: Outcome) {
        self.0.status = match outcome {
            Outcome::Shifted => 1,
            Outcome::Unshifted => 2,
            Outcome::Stop => 3,
        };
    }
}
