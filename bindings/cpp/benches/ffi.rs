//! What does the border cost? Calls of the C++ class, made and timed in C++, whose offsets are there already, so that no
//! proxy runs; the floor is the shift of as many rows alone. Times are of the thread's own computing. None of these calls may allocate, on either side.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use proxytune::combine::shift_by;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CString, c_char};
use std::hint::black_box;
use std::time::Duration;

// The bridge and the class in C++.
use proxytune_cpp as _;

struct Counting;
thread_local! {
    /// Of this thread alone: others are not on the path.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, and a counter.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[repr(C)]
struct Calls {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn calls_open(
        tuned: *const c_char,
        untuned: *const c_char,
        host: *const c_char,
        rows: usize,
        alpha: f32,
    ) -> *mut Calls;
    fn calls_close(calls: *mut Calls);
    fn calls_apply(calls: *mut Calls, rows: usize, times: u64) -> u64;
    fn calls_allocations() -> u64;
    fn calls_now() -> u64;
}

const MOST_ROWS: usize = 16;
const VOCAB: usize = 4096;

/// A processor on the C++ side.
struct Processor(*mut Calls);

impl Processor {
    fn new(alpha: f32) -> Self {
        let file = |name| {
            CString::new(format!("{}/../../tests/fixtures/{name}-f32.gguf", env!("CARGO_MANIFEST_DIR")))
        };
        let [tuned, untuned, host] = ["tuned", "untuned", "host"].map(|name| file(name).expect("no NUL"));
        // SAFETY: strings that end in NUL and live during the call.
        let calls = unsafe { calls_open(tuned.as_ptr(), untuned.as_ptr(), host.as_ptr(), MOST_ROWS, alpha) };
        assert!(!calls.is_null(), "the fixtures cannot be loaded");
        Self(calls)
    }

    fn apply(&self, rows: usize, times: u64) -> Duration {
        // SAFETY: open until dropped; it has as many rows.
        Duration::from_nanos(unsafe { calls_apply(self.0, rows.min(MOST_ROWS), times) })
    }

    /// Allocations that a call makes once its offsets are there.
    fn allocations(&self, rows: usize) -> u64 {
        // SAFETY: reads a counter.
        let count = || ALLOCATIONS.get() + unsafe { calls_allocations() };
        self.apply(rows, 2);
        let before = count();
        assert_ne!(before, 0, "the counter sees nothing");
        self.apply(rows, 100);
        (count() - before).div_ceil(100)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        // SAFETY: nobody uses it after this.
        unsafe { calls_close(self.0) }
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn measure(group: &mut Group<'_>, name: &str, processor: &Processor, rows: usize) {
    assert_eq!(processor.allocations(rows), 0, "{name}, {rows} rows: allocations");
    group.bench_function(BenchmarkId::new(name, rows), |bencher| {
        bencher.iter_custom(|times| processor.apply(rows, times));
    });
}

/// A call that changes no row.
fn nothing_to_shift(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ffi/nothing to shift");
    let processor = Processor::new(0.0);
    measure(&mut group, "no rows", &processor, 0);
    measure(&mut group, "alpha 0", &processor, 1);
    measure(&mut group, "alpha 0", &processor, MOST_ROWS);
    group.finish();
}

fn ffi(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ffi/shift");
    let processor = Processor::new(1e-6);
    measure(&mut group, "apply", &processor, 1);
    measure(&mut group, "apply", &processor, MOST_ROWS);

    let offset: Vec<f32> = (0..VOCAB).map(|i| i as f32 / 1e3).collect();
    let mut rows = vec![vec![0.0f32; VOCAB]; MOST_ROWS];
    for count in [1, MOST_ROWS] {
        group.bench_function(BenchmarkId::new("floor", count), |bencher| {
            bencher.iter_custom(|times| {
                // SAFETY: reads a clock.
                let begin = unsafe { calls_now() };
                for row in (0..times).flat_map(|_| 0..count) {
                    shift_by(black_box(&mut rows[row]), &offset, 1e-6).expect("rows of one length");
                }
                // SAFETY: as above.
                Duration::from_nanos(unsafe { calls_now() } - begin)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, nothing_to_shift, ffi);
criterion_main!(benches);
