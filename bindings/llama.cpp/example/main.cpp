// Greedy text of a model that two small ones customise: proxytuned MODEL CONFIG PROMPT [TOKENS]

#include <llama.h>
#include <proxytune/llama.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL CONFIG PROMPT [TOKENS]\n", argv[0]);
        return 2;
    }
    if (proxytune_abi_version() != PROXYTUNE_ABI_VERSION) {
        fprintf(stderr, "the library does not fit proxytune/llama.h\n");
        return 1;
    }
    const std::string prompt = argv[3];
    const int count = argc > 4 ? atoi(argv[4]) : 64;

    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    ggml_backend_load_all();

    std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
        llama_model_load_from_file(argv[1], llama_model_default_params()), llama_model_free);
    if (!model) {
        fprintf(stderr, "%s: cannot be loaded\n", argv[1]);
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model.get());
    std::vector<llama_token> tokens(prompt.size() + 8);
    const int n_prompt = llama_tokenize(vocab, prompt.data(), prompt.size(), tokens.data(), tokens.size(), true, true);
    if (n_prompt <= 0) {
        fprintf(stderr, "the prompt has no tokens\n");
        return 1;
    }
    tokens.resize(n_prompt);

    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = n_prompt + count;
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx(
        llama_init_from_model(model.get(), params), llama_free);
    if (!ctx) {
        fprintf(stderr, "no context for %d tokens\n", n_prompt + count);
        return 1;
    }

    llama_sampler * shift = proxytune_sampler_init(argv[2]);
    if (!shift) {
        fprintf(stderr, "%s\n", proxytune_last_error());
        return 1;
    }
    std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)> chain(
        llama_sampler_chain_init(llama_sampler_chain_default_params()), llama_sampler_free);
    llama_sampler_chain_add(chain.get(), shift);
    llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    for (llama_token token : tokens) {
        llama_sampler_accept(shift, token);
    }

    llama_batch batch = llama_batch_get_one(tokens.data(), n_prompt);
    llama_token token;
    for (int i = 0; i < count && llama_decode(ctx.get(), batch) == 0; i++) {
        token = llama_sampler_sample(chain.get(), ctx.get(), -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        char piece[256];
        const int length = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, false);
        fwrite(piece, 1, length > 0 ? length : 0, stdout);
        batch = llama_batch_get_one(&token, 1);
    }
    puts("");
    return 0;
}
