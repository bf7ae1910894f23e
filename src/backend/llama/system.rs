//! llama.cpp of the process that this library has been loaded into, by the header it was built with.
//!
//! Nothing is linked: a library that is preloaded everywhere must not ask for symbols that most processes lack. The
//! addresses are looked up once, by [`load`], before anything else here is called.

#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code, clippy::all)]

use crate::error::{Error, Result};
use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

include!(concat!(env!("OUT_DIR"), "/llama.rs"));

/// Finds the engine's functions in this process and holds the header against them.
///
/// # Errors
/// [`Error::Engine`] where the process has no llama.cpp, or one of another version than the header's.
pub fn load() -> Result<()> {
    static LOADED: OnceLock<Result<()>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            #[cfg(not(feature = "llama-linked"))]
            TABLE.get_or_init(look_up).as_ref().map_err(Clone::clone)?;
            layout::check()
        })
        .clone()
}

fn error(what: String) -> Error {
    Error::engine("llama.cpp of this process", what)
}

#[cfg(not(feature = "llama-linked"))]
static TABLE: OnceLock<Result<Table>> = OnceLock::new();

#[cfg(not(feature = "llama-linked"))]
fn look_up() -> Result<Table> {
    let library = Library::of_engine()
        .ok_or_else(|| error("not found; it must be linked dynamically or export its symbols".into()))?;
    Table::load(|name| library.find(name)).map_err(|missing| {
        let names = missing.join(", ");
        error(format!(
            "it lacks {names}; build the plugin with this very llama.cpp's header (make plugin LLAMA_DIR=…)"
        ))
    })
}

#[cfg(not(feature = "llama-linked"))]
fn table() -> &'static Table {
    match TABLE.get_or_init(look_up) {
        Ok(table) => table,
        // `load` has said so before.
        Err(error) => panic!("{error}"),
    }
}

/// A loaded library with those it depends on.
struct Library(*mut c_void);

impl Library {
    /// The one with llama.cpp in it: found by one of its functions, so that what others interpose does not count.
    fn of_engine() -> Option<Self> {
        let address = find_anywhere(c"llama_model_load_from_file");
        if address.is_null() {
            return None;
        }
        // SAFETY: all zero is a valid Dl_info; the address lies in a loaded library.
        let path = unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            if libc::dladdr(address, &mut info) == 0 {
                return Some(Self(std::ptr::null_mut()));
            }
            info.dli_fname
        };
        // SAFETY: a path from the loader; nothing new is loaded. Null, for a program that has it inside, is as good.
        Some(Self(unsafe { libc::dlopen(path, libc::RTLD_NOLOAD | libc::RTLD_LAZY) }))
    }

    fn find(&self, name: &CStr) -> *mut c_void {
        let found = match self.0.is_null() {
            true => std::ptr::null_mut(),
            // SAFETY: the handle is open and stays so.
            false => unsafe { libc::dlsym(self.0, name.as_ptr()) },
        };
        // Parts that the engine loads at run time (its processors' backends) are nobody's dependency.
        if found.is_null() { find_anywhere(name) } else { found }
    }
}

/// The address of a function in any library of this process, this one left aside; null where there is none.
pub fn find_anywhere(name: &CStr) -> *mut c_void {
    // SAFETY: looks only.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if !next.is_null() {
        return next;
    }
    // Libraries that were opened for somebody alone are not searched by the loader.
    struct Search<'a> {
        name: &'a CStr,
        own: *mut c_void,
        found: *mut c_void,
    }
    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> libc::c_int {
        // SAFETY: the loader passes a valid record, and what it was given. The path is open already.
        unsafe {
            let search = &mut *search.cast::<Search<'_>>();
            let path = (*info).dlpi_name;
            let handle = match path.is_null() || *path == 0 {
                // The program itself.
                true => libc::dlopen(std::ptr::null(), libc::RTLD_LAZY),
                false => libc::dlopen(path, libc::RTLD_NOLOAD | libc::RTLD_LAZY),
            };
            if handle.is_null() {
                return 0;
            }
            let address = libc::dlsym(handle, search.name.as_ptr());
            libc::dlclose(handle);
            let mut place: libc::Dl_info = std::mem::zeroed();
            let foreign =
                !address.is_null() && libc::dladdr(address, &mut place) != 0 && place.dli_fbase != search.own;
            if foreign {
                search.found = address;
            }
            libc::c_int::from(foreign)
        }
    }
    // SAFETY: all zero is a valid Dl_info; `look` matches the callback's type, and `search` outlives the call.
    unsafe {
        let mut place: libc::Dl_info = std::mem::zeroed();
        libc::dladdr(find_anywhere as *const c_void, &mut place);
        let mut search = Search { name, own: place.dli_fbase, found: std::ptr::null_mut() };
        libc::dl_iterate_phdr(Some(look), (&raw mut search).cast());
        search.found
    }
}

/// Whether the structures that the engine hands over by value are those of the header.
mod layout {
    use super::*;
    use std::mem::{align_of, size_of};

    #[cfg(feature = "llama-linked")]
    macro_rules! address {
        ($function:ident) => {
            super::$function as unsafe extern "C" fn() -> _ as *const c_void
        };
    }
    #[cfg(not(feature = "llama-linked"))]
    macro_rules! address {
        ($function:ident) => {
            table().$function as *const c_void
        };
    }
    const FILL: u8 = 0xa5;
    /// More than any version of these structures needs.
    const ROOM: usize = 1024;

    #[repr(C, align(16))]
    struct Room([u8; ROOM]);

    pub fn check() -> Result<()> {
        let model = fits::<llama_model_params>(address!(llama_model_default_params), |p| {
            p.progress_callback.is_none() && p.kv_overrides.is_null()
        });
        let context = fits::<llama_context_params>(address!(llama_context_default_params), |p| {
            let half = p.type_k == GGML_TYPE_F16 && p.type_v == GGML_TYPE_F16;
            half && p.n_seq_max == 1 && p.n_batch >= 1 && p.abort_callback.is_none()
        });
        let differ = |name: &str| {
            Err(error(format!(
                "{name} is laid out in another way than in the header that this was built with; build with the header of \
                 this very llama.cpp (make plugin LLAMA_DIR=…)"
            )))
        };
        match (model, context) {
            (false, _) => differ("llama_model_params"),
            (_, false) => differ("llama_context_params"),
            _ => Ok(()),
        }
    }

    /// Calls a function that returns a structure `T` in memory that is large enough for any other as well, and looks at
    /// what it has written.
    fn fits<T>(function: *const c_void, plausible: impl FnOnce(&T) -> bool) -> bool {
        let mut room = Room([FILL; ROOM]);
        // SAFETY: a large structure is returned through memory of the caller, which there is enough of. On x86-64 its
        // address is an ordinary argument, so that what has been written can be told from what has not.
        unsafe {
            if cfg!(target_arch = "x86_64") {
                let call: unsafe extern "C" fn(*mut Room) -> *mut Room = std::mem::transmute(function);
                call(&mut room);
                let written = room.0.iter().rposition(|&b| b != FILL).map_or(0, |last| last + 1);
                // The last bytes may be padding.
                if !(size_of::<T>() + 1 - align_of::<T>()..=size_of::<T>()).contains(&written) {
                    return false;
                }
            } else {
                let call: unsafe extern "C" fn() -> Room = std::mem::transmute(function);
                room = call();
            }
            plausible(&*room.0.as_ptr().cast::<T>())
        }
    }
}
