#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <llama.h>

int main(int argc, char** argv) {
  // The host's llama.cpp, the shared one; the proxies' is another and says nothing.
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  return doctest::Context(argc, argv).run();
}
