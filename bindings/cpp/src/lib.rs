//! What `include/proxytune/logits_processor.hpp` stands on: the batched logits processor behind the crate `cxx`.
//!
//! Each function answers with a [`Status`](ffi::Status), never with a panic.

mod processor;
mod row;
mod status;

use processor::Processor;

#[allow(unreachable_pub)]
#[cxx::bridge(namespace = "proxytune::ffi")]
mod ffi {
    /// How a call went.
    struct Status {
        /// A `StatusCode`.
        code: u8,
        message: String,
    }

    /// `Options`; paths are bytes, empty where not set.
    struct Options<'a> {
        config: &'a [u8],
        tuned: &'a [u8],
        tuned_lora: &'a [u8],
        untuned: &'a [u8],
        host: &'a [u8],
        vocabulary_size: usize,
        context: usize,
        sequences: usize,
        threads: usize,
        has_alpha: bool,
        alpha: f32,
        /// An `OnError`; 0: as configured.
        on_error: u8,
    }

    /// `Prompts`, and the alpha of one request.
    struct NewRequest<'a> {
        host: &'a [i32],
        tuned: &'a [i32],
        tuned_text: &'a [u8],
        has_alpha: bool,
        alpha: f32,
    }

    /// `Stats`.
    #[derive(Default)]
    struct Counters {
        requests: u64,
        shifted: u64,
        failed: u64,
        ignored: u64,
        rounds: u64,
        tuned_us: u64,
        untuned_us: u64,
    }

    #[namespace = "proxytune"]
    unsafe extern "C++" {
        include!("proxytune/logits_processor.hpp");
        type Row = crate::row::Row;
    }

    extern "Rust" {
        type Processor;

        fn new_processor() -> Box<Processor>;
        fn open(self: &Processor, options: &Options<'_>) -> Status;
        fn vocabulary_size(self: &Processor) -> usize;
        fn context_size(self: &Processor) -> usize;
        fn counters(self: &Processor) -> Counters;
        fn add(self: &Processor, id: u64, request: &NewRequest<'_>) -> Status;
        fn remove(self: &Processor, id: u64) -> Status;
        fn rollback(self: &Processor, id: u64, count: usize) -> Status;
        fn failure(self: &Processor, id: u64, message: &mut String) -> Status;

        /// # Safety
        /// The rows' pointers are null or good for as many values as the rows say.
        unsafe fn prefetch(self: &Processor, rows: &[Row]) -> Status;
        /// # Safety
        /// As [`Self::prefetch`]; nobody else uses the logits meanwhile.
        unsafe fn apply(self: &Processor, rows: &mut [Row]) -> Status;
        /// # Safety
        /// As [`Self::prefetch`]; `out` is null, or good for the last row's values at that stride.
        unsafe fn compute_offsets(self: &Processor, rows: &mut [Row], out: *mut f32, stride: usize)
        -> Status;
    }
}

fn new_processor() -> Box<Processor> {
    Box::default()
}
