// consumer TUNED HOST UNTUNED: a program that was linked against an installed proxytune. With WITH_LLAMA it links a
// libllama of its own besides, and reads its prompt through that; the result is the same.

#include <algorithm>
#include <cstdio>
#include <vector>

#include <proxytune/logits_processor.hpp>

#ifdef WITH_LLAMA
#include <llama.h>

static std::vector<proxytune::TokenId> Prompt(const char* host) {
  llama_backend_init();
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  llama_model* model = llama_model_load_from_file(host, params);
  std::vector<proxytune::TokenId> tokens(8);
  tokens.resize(llama_tokenize(llama_model_get_vocab(model), "The", 3, tokens.data(), 8, true, true));
  llama_model_free(model);
  return tokens;
}
#else
static std::vector<proxytune::TokenId> Prompt(const char*) { return {689}; }
#endif

int main(int argc, char** argv) {
  if (argc != 4) {
    return 2;
  }
  proxytune::Options options;
  options.tuned = argv[1];
  options.untuned = argv[2];
  options.host = argv[3];
  try {
    proxytune::LogitsProcessor processor(options);
    const std::vector<proxytune::TokenId> prompt = Prompt(argv[3]);
    std::vector<float> logits(processor.vocabulary_size());
    proxytune::Row row;
    row.request_id = 1;
    row.history = prompt.data();
    row.history_size = prompt.size();
    row.logits = logits.data();
    row.logits_size = logits.size();
    processor.AddRequest(1);
    processor.Apply(&row, 1);
    const auto largest = std::max_element(logits.begin(), logits.end());
    std::printf("%td %.4f\n", largest - logits.begin(), *largest);
    processor.RemoveRequest(2);
  } catch (const proxytune::Error& error) {
    std::printf("%s\n", error.what());
  }
}
