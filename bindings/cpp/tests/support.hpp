// What several test files share: the float32 trio and the golden files of the transformers oracle.

#ifndef PROXYTUNE_TESTS_SUPPORT_HPP
#define PROXYTUNE_TESTS_SUPPORT_HPP

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include <proxytune/logits_processor.hpp>

namespace support {

using proxytune::Row;
using proxytune::RowStatus;
using proxytune::TokenId;
using Tokens = std::vector<TokenId>;

inline std::string Path(const std::string& relative) { return std::string(PROXYTUNE_REPOSITORY "/") + relative; }

// The float32 trio of the golden files.
inline proxytune::Options Fixture() {
  proxytune::Options options;
  options.tuned = Path("tests/fixtures/tuned-f32.gguf");
  options.untuned = Path("tests/fixtures/untuned-f32.gguf");
  options.host = Path("tests/fixtures/host-f32.gguf");
  options.context = 512;
  options.threads = 1;
  return options;
}

struct Case {
  std::string name, prompt;
  float alpha;
  Tokens prompt_tokens, tuned_prompt_tokens, tokens, host_tokens;
  std::vector<std::size_t> positions;

  proxytune::Prompts Prompts() const {
    proxytune::Prompts prompts;
    if (tuned_prompt_tokens != prompt_tokens) {
      prompts.host = prompt_tokens;
      prompts.tuned = tuned_prompt_tokens;
    }
    return prompts;
  }
};

const std::vector<Case>& Cases();

// Rows of a golden tensor [positions, vocabulary].
std::vector<std::vector<float>> GoldenRows(const std::string& name);

inline Row RowOf(proxytune::RequestId id, const Tokens& history) {
  Row row;
  row.request_id = id;
  row.history = history.data();
  row.history_size = history.size();
  return row;
}

inline Row RowOf(proxytune::RequestId id, const Tokens& history, std::vector<float>& logits) {
  Row row = RowOf(id, history);
  row.logits = logits.data();
  row.logits_size = logits.size();
  return row;
}

inline std::vector<float> Offset(proxytune::LogitsProcessor& processor, proxytune::RequestId id,
                                 const Tokens& history) {
  std::vector<float> offset(processor.vocabulary_size());
  Row row = RowOf(id, history);
  processor.ComputeOffsets(&row, 1, offset.data(), offset.size());
  return offset;
}

inline float Distance(const std::vector<float>& a, const std::vector<float>& b) {
  float worst = a.size() == b.size() ? 0 : 1e30f;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    worst = std::max(worst, std::abs(a[i] - b[i]));
  }
  return worst;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Batched and single passes sum in different orders.
constexpr float kRounding = 2e-3f;

// A file that is gone after the test.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& text, const char* extension) {
    std::string pattern = "/tmp/proxytune-XXXXXX" + std::string(extension);
    close(mkstemps(pattern.data(), static_cast<int>(std::strlen(extension))));
    path = pattern;
    std::ofstream(path) << text;
  }
  ~TemporaryFile() { std::remove(path.c_str()); }
  std::string path;
};

}  // namespace support

#endif  // PROXYTUNE_TESTS_SUPPORT_HPP
