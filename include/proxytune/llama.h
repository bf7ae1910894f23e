// proxytune as a sampler of llama.cpp: proxy-tuning, h + alpha * (tuned - untuned), at the head of a sampler chain.
//
// A program that is not to be changed does not need this header: preload libproxytune_llama.so, see docs/hosts/llama.cpp.md.
//
// The sampler goes into a chain before all others, and is told of every token that the model reads, prompt included:
//
//     struct llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
//     struct llama_sampler * shift = proxytune_sampler_init("proxytune.toml");
//     if (shift == NULL) {
//         fprintf(stderr, "%s\n", proxytune_last_error());
//         return 1;
//     }
//     llama_sampler_chain_add(chain, shift);                       // the chain owns it from here on
//     llama_sampler_chain_add(chain, llama_sampler_init_greedy());
//     for (int i = 0; i < n_prompt; i++) {
//         llama_sampler_accept(shift, prompt[i]);                  // not the chain: penalties would count the prompt
//     }
//     ... llama_decode(...) ...
//     llama_token token = llama_sampler_sample(chain, ctx, -1);    // accepts the token too
//
// The proxies are loaded by the first sampler of a configuration and shared by all that follow; they stay until the
// program ends. Samplers can be reset, cloned, copied and freed in any order like llama.cpp's own; one that is never
// applied costs nothing. No function here throws, and none ends the program.

#ifndef PROXYTUNE_LLAMA_H
#define PROXYTUNE_LLAMA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct llama_sampler;

// Makes a sampler with the proxies that a configuration names (TOML, section [proxy_tuning]).
//
//   config_path  the file's path, ends in NUL, not kept. NULL is an error like any other.
//
// Returns a sampler, or NULL: proxytune_last_error() says why. The caller owns it, until it is added to a chain or freed
// with llama_sampler_free. Any thread may call this, several at once; a sampler itself is for one thread at a time, and
// samplers of several threads share the proxies.
//
// The host's vocabulary is that of [host] model in the file; where that is not set, it is taken to be the proxies'.
struct llama_sampler * proxytune_sampler_init(const char * config_path);

// Why proxytune_sampler_init last returned NULL on this thread, in one line; "" where it did not. Never NULL. Owned by
// the library, valid until this thread calls proxytune_sampler_init again or ends. Any thread; each has its own.
const char * proxytune_last_error(void);

// The version of this interface; PROXYTUNE_ABI_VERSION of a header that fits the library. Any thread.
uint32_t proxytune_abi_version(void);

#define PROXYTUNE_ABI_VERSION 1

#ifdef __cplusplus
}
#endif

#endif // PROXYTUNE_LLAMA_H
