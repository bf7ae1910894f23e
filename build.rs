//! With `llama-system`: bindings of the user's own `llama.h`, whose functions are looked up in the process at run time.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(llama_use_mmap)");
    println!("cargo:rustc-check-cfg=cfg(llama_without_adapters)");
    #[cfg(feature = "llama-system")]
    system::generate();
}

#[cfg(feature = "llama-system")]
mod system {
    use proc_macro2::{Literal, TokenStream};
    use quote::quote;
    use std::collections::BTreeSet;
    use std::env;
    use std::fs;
    use std::path::{Path, PathBuf};
    use syn::{FnArg, ForeignItem, ForeignItemFn, Item, Pat};

    /// Where the engine is called from. A function that is not called there is not asked for.
    const SOURCES: [&str; 2] = ["src/backend/llama", "src/host/llama_sampler"];

    /// What LoRA adapters need, and nothing else does.
    const ADAPTERS: [&str; 3] = ["llama_adapter_lora_init", "llama_set_adapters_lora", "gguf_get_tensor_ne"];

    pub fn generate() {
        let bindings = bindings(&include_dirs());
        // Before there were several ways to load a model there was one switch.
        if bindings.contains("use_mmap") {
            println!("cargo:rustc-cfg=llama_use_mmap");
        }
        let file = syn::parse_file(&bindings).expect("bindgen writes Rust");
        let wanted = functions();
        let mut items = Vec::new();
        let mut found = Vec::new();
        for item in file.items {
            match item {
                Item::ForeignMod(block) => {
                    found.extend(block.items.into_iter().filter_map(|item| match item {
                        ForeignItem::Fn(f) if wanted.contains(&f.sig.ident.to_string()) => Some(f),
                        _ => None,
                    }))
                }
                item => items.push(item),
            }
        }
        let known: BTreeSet<String> = found.iter().map(|f| f.sig.ident.to_string()).collect();
        let mut missing: Vec<_> = wanted.difference(&known).map(String::as_str).collect();
        if ADAPTERS.iter().any(|name| missing.contains(name)) {
            println!("cargo:rustc-cfg=llama_without_adapters");
            missing.retain(|name| !ADAPTERS.contains(name));
            found.retain(|f| !ADAPTERS.iter().any(|name| f.sig.ident == name));
        }
        if !missing.is_empty() {
            panic!("this llama.h is too old or too new: it does not declare {}", missing.join(", "));
        }
        let functions = match env::var("CARGO_FEATURE_LLAMA_LINKED") {
            Ok(_) => linked(&found),
            Err(_) => looked_up(&found),
        };
        let code = quote! { #(#items)* #functions };
        let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("llama.rs");
        fs::write(out, code.to_string()).expect("OUT_DIR can be written");
    }

    /// The folders of `llama.h` and `ggml.h` below `LLAMA_DIR`, be that a source tree or an install prefix.
    fn include_dirs() -> Vec<PathBuf> {
        println!("cargo:rerun-if-env-changed=LLAMA_DIR");
        // Unset: wherever the compiler looks.
        let Some(dir) = env::var_os("LLAMA_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from) else {
            return Vec::new();
        };
        let places = [dir.join("include"), dir.join("ggml/include"), dir.clone()];
        let dirs: Vec<_> =
            places.into_iter().filter(|d| d.join("llama.h").exists() || d.join("ggml.h").exists()).collect();
        if !dirs.iter().any(|d| d.join("llama.h").exists()) {
            panic!(
                "LLAMA_DIR={}: there is no include/llama.h; give llama.cpp's source tree or install prefix",
                dir.display()
            );
        }
        for dir in &dirs {
            println!("cargo:rerun-if-changed={}", dir.display());
        }
        dirs
    }

    fn bindings(include_dirs: &[PathBuf]) -> String {
        bindgen::Builder::default()
            .header_contents("proxytune.h", "#include <llama.h>\n#include <ggml-cpu.h>\n#include <gguf.h>\n")
            .clang_args(include_dirs.iter().map(|d| format!("-I{}", d.display())))
            .allowlist_item("(llama|ggml|gguf)_.*|(LLAMA|GGML|GGUF)_.*")
            .prepend_enum_name(false)
            .layout_tests(false)
            .generate_comments(false)
            .formatter(bindgen::Formatter::None)
            .generate()
            .unwrap_or_else(|e| {
                panic!(
                    "llama.h cannot be read ({e}); set LLAMA_DIR to llama.cpp's source tree or install prefix"
                )
            })
            .to_string()
    }

    /// Names of the functions that the sources call.
    fn functions() -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for folder in SOURCES {
            println!("cargo:rerun-if-changed={folder}");
            scan(Path::new(folder), &mut names);
        }
        names
    }

    fn scan(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                scan(&path, names);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            for (at, start) in text.match_indices("sys::") {
                let rest = &text[at + start.len()..];
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                let is_engines = ["llama_", "ggml_", "gguf_"].iter().any(|prefix| name.starts_with(prefix));
                if after.starts_with('(') && is_engines {
                    names.insert(name.to_owned());
                }
            }
        }
    }

    /// The functions as they are: the linker finds them.
    fn linked(functions: &[ForeignItemFn]) -> TokenStream {
        quote! { unsafe extern "C" { #(#functions)* } }
    }

    /// A table of addresses, and functions of the same names that call through it.
    fn looked_up(functions: &[ForeignItemFn]) -> TokenStream {
        let fields = functions.iter().map(|f| {
            let (name, inputs, output) = (&f.sig.ident, &f.sig.inputs, &f.sig.output);
            quote! { #name: unsafe extern "C" fn(#inputs) #output }
        });
        let lookups = functions.iter().map(|f| {
            let name = &f.sig.ident;
            let symbol = Literal::c_string(&std::ffi::CString::new(name.to_string()).expect("no NUL"));
            quote! { let #name = look_up(#symbol); }
        });
        let takes = functions.iter().map(|f| {
            let name = &f.sig.ident;
            quote! { #name: unsafe { std::mem::transmute::<*mut std::ffi::c_void, _>(#name) } }
        });
        let calls = functions.iter().map(|f| {
            let (name, inputs, output) = (&f.sig.ident, &f.sig.inputs, &f.sig.output);
            let arguments = inputs.iter().filter_map(|input| match input {
                FnArg::Typed(typed) => match &*typed.pat {
                    Pat::Ident(ident) => Some(&ident.ident),
                    _ => None,
                },
                FnArg::Receiver(_) => None,
            });
            quote! {
                pub unsafe fn #name(#inputs) #output { unsafe { (table().#name)(#(#arguments),*) } }
            }
        });
        quote! {
            /// Addresses of the engine's functions.
            pub struct Table { #(#fields),* }

            impl Table {
                /// Looks all of them up; the names of those not found, where there are any.
                pub fn load(find: impl Fn(&std::ffi::CStr) -> *mut std::ffi::c_void) -> std::result::Result<Self, Vec<String>> {
                    let mut missing = Vec::new();
                    let mut look_up = |name: &std::ffi::CStr| {
                        let address = find(name);
                        if address.is_null() {
                            missing.push(name.to_string_lossy().into_owned());
                        }
                        address
                    };
                    #(#lookups)*
                    if !missing.is_empty() {
                        return Err(missing);
                    }
                    // SAFETY: each is the address of the function of this name, and the header declares its type.
                    Ok(Self { #(#takes),* })
                }
            }

            #(#calls)*
        }
    }
}
