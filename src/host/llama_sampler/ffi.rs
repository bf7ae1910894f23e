//! The sampler behind llama.cpp's C interface.
//!
//! Nothing here panics into the host: what does panic is said once, and the host goes on as if it had no sampler.

use super::{Chain, Host, Row, Tuner, heard, say};
use crate::backend::llama::{LlamaModel, sys};
use crate::vocab::Token;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, Once};

pub use sys::{llama_context, llama_sampler, llama_token, llama_token_data_array};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs `call` so that no panic leaves it.
pub(super) fn guard<T>(otherwise: T, call: impl FnOnce() -> T) -> T {
    static SAID: Once = Once::new();
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        SAID.call_once(|| {
            say("an error in the plugin itself, see above; requests go on unshifted where it happens")
        });
        otherwise
    })
}

struct Interface(sys::llama_sampler_i);
// SAFETY: functions only, never written.
unsafe impl Sync for Interface {}

static INTERFACE: Interface = Interface(sys::llama_sampler_i {
    name: Some(name),
    accept: Some(accept),
    apply: Some(apply),
    reset: Some(reset),
    clone: Some(clone),
    free: Some(free),
    backend_init: None,
    backend_accept: None,
    backend_apply: None,
    backend_set_input: None,
    backend_reset: None,
    copy_state: Some(copy_state),
});

/// A sampler around a chain; null where llama.cpp makes none. Owned by the caller: `llama_sampler_free`, or the chain
/// that it is added to.
pub(super) fn wrap(chain: Chain) -> *mut llama_sampler {
    let state = Box::into_raw(Box::new(chain));
    // SAFETY: llama.cpp only reads the interface, and hands the state back to its functions.
    let sampler = unsafe { sys::llama_sampler_init((&raw const INTERFACE.0).cast_mut(), state.cast()) };
    if sampler.is_null() {
        // SAFETY: nobody else has got it.
        drop(unsafe { Box::from_raw(state) });
    }
    sampler
}

pub(super) fn is_ours(sampler: *const llama_sampler) -> bool {
    // SAFETY: a sampler that the host holds is valid.
    !sampler.is_null() && unsafe { (*sampler).iface }.cast_const() == &raw const INTERFACE.0
}

/// # Safety
/// A sampler made by [`wrap`], used by one thread at a time.
unsafe fn state<'a>(sampler: *const llama_sampler) -> &'a mut Chain {
    // SAFETY: see above.
    unsafe { &mut *(*sampler).ctx.cast::<Chain>() }
}

unsafe extern "C" fn name(_: *const llama_sampler) -> *const c_char {
    c"proxytune".as_ptr()
}

unsafe extern "C" fn accept(sampler: *mut llama_sampler, token: llama_token) {
    guard((), || {
        // Places of an image have no token.
        if let Ok(token) = Token::try_from(token) {
            // SAFETY: llama.cpp passes our own sampler.
            unsafe { state(sampler) }.accept(token, !heard::hears_passes());
        }
    });
}

unsafe extern "C" fn apply(sampler: *mut llama_sampler, candidates: *mut llama_token_data_array) {
    guard((), || {
        // SAFETY: llama.cpp passes our own sampler, and an array of which `size` places are filled.
        let (state, array, rows) = unsafe {
            let array = &mut *candidates;
            if array.data.is_null() {
                return;
            }
            (state(sampler), &mut array.sorted, std::slice::from_raw_parts_mut(array.data, array.size))
        };
        *array = false;
        let Some(context) = heard::fetched(|place| state.learn(place)) else {
            return state.apply(None, rows);
        };
        // SAFETY: this thread has just fetched logits of this context.
        let host = || unsafe { host(context) };
        let model = host_model(context);
        let row = Row { signature: (model.parameters(), model.size()), host: &host };
        state.apply(Some(row), rows);
    });
}

unsafe extern "C" fn reset(sampler: *mut llama_sampler) {
    // SAFETY: llama.cpp passes our own sampler.
    guard((), || unsafe { state(sampler) }.reset());
}

unsafe extern "C" fn clone(sampler: *const llama_sampler) -> *mut llama_sampler {
    // SAFETY: llama.cpp passes our own sampler.
    guard(null_mut(), || wrap(unsafe { state(sampler) }.fork()))
}

unsafe extern "C" fn copy_state(from: *const llama_sampler, to: *mut llama_sampler) {
    guard((), || {
        if from != to {
            // SAFETY: llama.cpp passes two samplers of ours, which are not the same.
            unsafe { state(to).copy_from(state(from)) }
        }
    });
}

unsafe extern "C" fn free(sampler: *mut llama_sampler) {
    // SAFETY: llama.cpp passes our own sampler, for the last time.
    guard((), || drop(unsafe { Box::from_raw((*sampler).ctx.cast::<Chain>()) }));
}

fn host_model(context: *const llama_context) -> LlamaModel {
    // SAFETY: this thread has just fetched logits of this context, so it and its model are alive.
    unsafe { LlamaModel::of_context(context) }.expect("a context has a model")
}

/// # Safety
/// The context is valid.
unsafe fn host(context: *const llama_context) -> Host {
    let size = |n: u32| n as usize;
    // SAFETY: as above.
    unsafe {
        Host {
            model: Arc::new(host_model(context)),
            context: size(sys::llama_n_ctx_seq(context)),
            sequences: size(sys::llama_n_seq_max(context)),
            threads: usize::try_from(sys::llama_n_threads(context.cast_mut())).unwrap_or(0),
        }
    }
}

// By call

/// Makes a sampler with the proxies of a configuration file; null on failure, see [`last_error`].
///
/// # Safety
/// `path` is null or a string that ends in NUL.
pub unsafe fn sampler_init(path: *const c_char) -> *mut llama_sampler {
    guard(null_mut(), || {
        LAST_ERROR.take();
        if path.is_null() {
            set_last_error("config_path: got null, expected the path of a TOML file");
            return null_mut();
        }
        // SAFETY: as above.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy();
        #[cfg(not(feature = "llama"))]
        if let Err(error) = sys::load() {
            set_last_error(error);
            return null_mut();
        }
        match Tuner::of(Path::new(&*path)) {
            Ok(tuner) => wrap(Chain::new(tuner)),
            Err(error) => {
                set_last_error(error);
                null_mut()
            }
        }
    })
}

/// Why the last [`sampler_init`] on this thread failed; an empty string where it did not. Valid until the next one.
pub fn last_error() -> *const c_char {
    guard(c"".as_ptr(), || LAST_ERROR.with_borrow(|error| error.as_ptr()))
}

fn set_last_error(error: impl ToString) {
    LAST_ERROR.set(CString::new(error.to_string().replace('\0', " ")).unwrap_or_default());
}

#[cfg(all(test, any(miri, feature = "llama")))]
mod tests {
    //! Calls in any order, as llama.cpp makes them, over proxies without a model. Miri runs this too: there the engine is what
    //! stands in [`engine`].

    use super::super::tuner::Running;
    use super::*;
    use crate::backend::{Capabilities, toy::Toy};
    use crate::combine::Control;
    use crate::config::OnError;
    use crate::pair::{CachedModel, Pair, Placement, Proxy, Runner};
    use crate::vocab::TokenMap;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use sys::llama_token_data as Candidate;

    #[cfg(miri)]
    mod engine {
        use super::*;

        /// As much of llama.cpp as is called here.
        #[unsafe(no_mangle)]
        extern "C" fn llama_sampler_init(
            iface: *mut sys::llama_sampler_i,
            ctx: *mut std::ffi::c_void,
        ) -> *mut llama_sampler {
            Box::into_raw(Box::new(llama_sampler { iface, ctx }))
        }

        pub unsafe fn free_sampler(sampler: *mut llama_sampler) {
            // SAFETY: made above, and used no more.
            unsafe {
                super::free(sampler);
                drop(Box::from_raw(sampler));
            }
        }
    }
    #[cfg(miri)]
    use engine::free_sampler;
    #[cfg(not(miri))]
    use llama_cpp_sys_2::llama_sampler_free as free_sampler;

    const VOCAB: usize = 8;
    const CONTEXT: usize = 12;

    fn toy(seed: u64) -> Toy {
        let (slots, context, batch) = (2, CONTEXT, 16);
        Toy::new(Capabilities { slots, context, batch, vocab: VOCAB, truncate: true, fork: true }, seed)
    }

    fn tuner() -> Arc<Tuner> {
        let proxy =
            |seed| Proxy { model: CachedModel::new("toy", toy(seed)), map: TokenMap::identity(VOCAB) };
        let start = move |_: Option<&Host>| {
            let runner = Runner::new(Pair::new(proxy(1), proxy(2), Placement::InTurn)?)?;
            Ok(Running { background: true, runner, ends: vec![0] })
        };
        Arc::new(Tuner::with(1.0, Control::default(), OnError::Host, Box::new(start)))
    }

    /// A sampler, and the tokens that it was told of since its beginning.
    struct Sampler(*mut llama_sampler, Vec<Token>);

    impl Drop for Sampler {
        fn drop(&mut self) {
            // SAFETY: made by `wrap`; nobody has it any more.
            unsafe { free_sampler(self.0) };
        }
    }

    impl Sampler {
        fn new(tuner: &Arc<Tuner>) -> Self {
            Self(wrap(Chain::new(tuner.clone())), vec![])
        }

        fn accept(&mut self, token: i32) {
            // SAFETY: a sampler of ours, on one thread.
            unsafe { accept(self.0, token) };
            self.1.extend(Token::try_from(token));
        }

        /// Every candidate is what plain arithmetic makes of it.
        fn apply(&self, ids: &[i32], logit: f32) {
            let candidate = |&id| Candidate { id, logit, p: 0.0 };
            let mut candidates: Vec<_> = ids.iter().map(candidate).collect();
            let data = if ids.is_empty() { null_mut() } else { candidates.as_mut_ptr() };
            let mut array = llama_token_data_array { data, size: ids.len(), selected: -1, sorted: true };
            // SAFETY: a sampler of ours, on one thread; the array is as long as it says.
            unsafe { apply(self.0, &raw mut array) };
            let fits = !self.1.is_empty() && self.1.len() <= CONTEXT && logit.is_finite();
            let [tuned, untuned] = [1, 2].map(|seed| toy(seed).logits_after(&self.1));
            for (candidate, &id) in candidates.iter().zip(ids) {
                let known = usize::try_from(id).ok().filter(|&id| fits && id < VOCAB);
                let shift = known.map_or(0.0, |id| tuned[id] - untuned[id]);
                assert_eq!((candidate.id, candidate.logit), (id, logit + shift), "{:?}", self.1);
            }
            assert!(ids.is_empty() || !array.sorted);
        }
    }

    #[derive(Debug, Clone)]
    enum Call {
        Accept(usize, i32),
        Apply(usize, Vec<i32>, f32),
        Reset(usize),
        Clone(usize),
        Copy(usize, usize),
        Free(usize),
        New,
    }

    fn call() -> impl Strategy<Value = Call> {
        let which = || 0..4usize;
        let whole = Just((0..VOCAB as i32).collect::<Vec<_>>());
        let ids =
            prop_oneof![2 => whole, 1 => vec(prop_oneof![-1..9i32, Just(i32::MIN), Just(i32::MAX)], 0..6)];
        let logit = prop_oneof![4 => Just(1.5f32), 1 => Just(f32::NEG_INFINITY)];
        prop_oneof![
            6 => (which(), -1..VOCAB as i32).prop_map(|(at, token)| Call::Accept(at, token)),
            4 => (which(), ids, logit).prop_map(|(at, ids, logit)| Call::Apply(at, ids, logit)),
            1 => which().prop_map(Call::Reset),
            1 => which().prop_map(Call::Clone),
            1 => (which(), which()).prop_map(|(from, to)| Call::Copy(from, to)),
            1 => which().prop_map(Call::Free),
            1 => Just(Call::New),
        ]
    }

    fn run(tuner: &Arc<Tuner>, calls: Vec<Call>) {
        let mut all = vec![Sampler::new(tuner)];
        for call in calls {
            let count = all.len();
            match call {
                Call::Accept(at, token) => all[at % count].accept(token),
                Call::Apply(at, ids, logit) => all[at % count].apply(&ids, logit),
                Call::Reset(at) => {
                    let Sampler(sampler, history) = &mut all[at % count];
                    // SAFETY: as above.
                    unsafe { reset(*sampler) };
                    history.clear();
                }
                Call::Clone(at) => {
                    let Sampler(sampler, history) = &all[at % count];
                    // SAFETY: as above.
                    let copy = Sampler(unsafe { clone(*sampler) }, history.clone());
                    all.push(copy);
                }
                Call::Copy(from, to) => {
                    // SAFETY: as above; it may be the same one twice.
                    unsafe { copy_state(all[from % count].0, all[to % count].0) };
                    all[to % count].1 = all[from % count].1.clone();
                }
                Call::Free(at) if count > 1 => drop(all.swap_remove(at % count)),
                Call::Free(_) => {}
                Call::New => all.push(Sampler::new(tuner)),
            }
        }
    }

    proptest! {
        #[test]
        fn calls_in_any_order_do_what_they_say(threads in vec(vec(call(), 1..24), 1..4)) {
            let tuner = tuner();
            std::thread::scope(|scope| {
                for calls in threads {
                    scope.spawn(|| run(&tuner, calls));
                }
            });
        }
    }

    #[test]
    fn why_there_is_no_sampler_is_said_to_the_thread_that_asked() {
        // SAFETY: null, and strings that end.
        let ask = |path: Option<&CStr>| unsafe { sampler_init(path.map_or(std::ptr::null(), CStr::as_ptr)) };
        // SAFETY: never null, and read before the next call.
        let said = || unsafe { CStr::from_ptr(last_error()) }.to_str().unwrap().to_owned();
        assert!(ask(None).is_null() && said().contains("config_path: got null"));
        std::thread::scope(|scope| drop(scope.spawn(|| assert_eq!(said(), ""))));
        if cfg!(not(miri)) {
            assert!(
                ask(Some(c"/absent/\xff.toml")).is_null() && said().contains("cannot be read"),
                "{}",
                said()
            );
            assert!(said().starts_with("/absent/"));
        }
    }
}
