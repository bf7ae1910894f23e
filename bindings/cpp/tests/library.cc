// What the processor does, row by row.

#include <doctest/doctest.h>

#include <limits>
#include <random>
#include <utility>

#include "support.hpp"

using namespace support;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> HostRow(std::size_t size) {
  std::vector<float> row(size);
  for (std::size_t i = 0; i < size; ++i) {
    row[i] = static_cast<float>(i % 97) / 7 - 5;
  }
  row[3] = -kInfinity;
  return row;
}

std::uint16_t ToBFloat16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>(bits >> 16);
}

float FromBFloat16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

TEST_CASE("Apply adds what ComputeOffsets writes, and a -inf stays") {
  proxytune::LogitsProcessor processor(Fixture());
  const Tokens history = Cases()[1].prompt_tokens;
  for (const float alpha : {1.0f, -0.5f, 2.0f}) {
    processor.AddRequest(1, {}, alpha);
    const std::vector<float> offset = Offset(processor, 1, history);
    std::vector<float> logits = HostRow(processor.vocabulary_size());
    std::vector<float> expected = logits;
    Row row = RowOf(1, history, logits);
    processor.Apply(&row, 1);
    CHECK(row.status == RowStatus::kShifted);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      expected[i] += offset[i];
    }
    CHECK(logits[3] == -kInfinity);
    logits[3] = expected[3] = 0;
    CHECK(Distance(logits, expected) == 0);
    processor.RemoveRequest(1);
  }
}

TEST_CASE("logits may have 16 bits") {
  proxytune::LogitsProcessor processor(Fixture());
  processor.AddRequest(1);
  const Tokens history = Cases()[1].prompt_tokens;
  const std::vector<float> offset = Offset(processor, 1, history);
  std::vector<std::uint16_t> logits(offset.size(), ToBFloat16(1.5f));
  Row row = RowOf(1, history);
  row.logits = logits.data();
  row.logits_size = logits.size();
  row.dtype = proxytune::DType::kBFloat16;
  processor.Apply(&row, 1);
  for (std::size_t i = 0; i < offset.size(); ++i) {
    const float expected = 1.5f + offset[i];
    REQUIRE(std::abs(FromBFloat16(logits[i]) - expected) <= std::abs(expected) / 128 + 1e-6f);
  }
  // Half precision: 1.0 is 0x3c00, and a sign bit or an exponent out of place would show.
  std::fill(logits.begin(), logits.end(), std::uint16_t{0x3c00});
  row.dtype = proxytune::DType::kFloat16;
  processor.Apply(&row, 1);
  for (std::size_t i = 0; i < offset.size(); ++i) {
    const int exponent = (logits[i] >> 10) & 0x1f;
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(logits[i] & 0x3ff), -24)
                                          : std::ldexp(1 + static_cast<float>(logits[i] & 0x3ff) / 1024, exponent - 15);
    const float value = logits[i] & 0x8000 ? -magnitude : magnitude;
    REQUIRE(std::abs(value - (1 + offset[i])) <= std::abs(1 + offset[i]) / 1024 + 1e-4f);
  }
}

TEST_CASE("alpha 0 leaves every bit and runs no proxy") {
  proxytune::LogitsProcessor processor(Fixture());
  processor.AddRequest(1, {}, 0.0f);
  std::vector<float> logits = HostRow(processor.vocabulary_size());
  logits[0] = -0.0f;
  logits[1] = std::nanf("");
  logits[2] = kInfinity;
  const std::vector<float> before = logits;
  Row row = RowOf(1, Cases()[0].prompt_tokens, logits);
  processor.Prefetch(&row, 1);
  processor.Apply(&row, 1);
  CHECK(SameBits(logits, before));
  CHECK(row.status == RowStatus::kShifted);
  CHECK(processor.stats().rounds == 0);
}

TEST_CASE("rows that move, drafts and several texts of one request are shifted as each by itself") {
  proxytune::LogitsProcessor processor(Fixture());
  proxytune::LogitsProcessor alone(Fixture());
  alone.AddRequest(1);
  std::mt19937 random(7);
  std::vector<Tokens> texts(6, Cases()[1].prompt_tokens);
  for (proxytune::RequestId id = 0; id < 3; ++id) {
    processor.AddRequest(id);
  }
  for (int step = 0; step < 12; ++step) {
    // Texts 0 and 1 are request 0's, and so on; each has up to three rows, of which all but one are drafted.
    std::vector<Row> rows;
    for (std::size_t text = 0; text < texts.size(); ++text) {
      for (int token = 0; token < 3; ++token) {
        texts[text].push_back(static_cast<TokenId>(300 + random() % 64));
      }
      for (std::size_t back = 0; back <= random() % 3; ++back) {
        rows.push_back(RowOf(text / 2, texts[text]));
        rows.back().history_size -= back;
      }
    }
    std::shuffle(rows.begin(), rows.end(), random);
    if (step % 2 == 0) {
      processor.Prefetch(rows);
    }
    std::vector<std::vector<float>> logits(rows.size(), std::vector<float>(processor.vocabulary_size()));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i].logits = logits[i].data();
      rows[i].logits_size = logits[i].size();
    }
    const std::uint64_t rounds = processor.stats().rounds;
    processor.Apply(rows);
    CHECK(processor.stats().rounds - rounds <= 2);  // prompts of the first step may take a second pass
    for (std::size_t i = 0; i < rows.size(); ++i) {
      CHECK(rows[i].status == RowStatus::kShifted);
      const Tokens history(rows[i].history, rows[i].history + rows[i].history_size);
      REQUIRE(Distance(logits[i], Offset(alone, 1, history)) <= kRounding);
    }
    for (Tokens& text : texts) {
      text.resize(text.size() - random() % 3);  // what was drafted in vain
    }
    if (step % 3 == 0) {
      processor.Rollback(1, 1);
    }
  }
}

TEST_CASE("a history beyond the proxies' context is its request's trouble alone") {
  for (const auto& [on_error, expected] : {std::pair(proxytune::OnError::kHost, RowStatus::kUnshifted),
                                           std::pair(proxytune::OnError::kStop, RowStatus::kStop)}) {
    proxytune::Options options = Fixture();
    options.context = 40;
    options.on_error = on_error;
    proxytune::LogitsProcessor processor(options);
    REQUIRE(processor.context_size() >= 40);
    const Tokens longer(processor.context_size() + 1, 300);
    const Tokens fits(processor.context_size(), 300);
    // One that the proxies cannot read, which an image's place may be.
    const Tokens strange = {300, -1, 301};
    std::vector<std::vector<float>> logits(3, HostRow(processor.vocabulary_size()));
    const std::vector<float> before = logits[0];
    std::vector<Row> rows = {RowOf(1, longer, logits[0]), RowOf(2, fits, logits[1]), RowOf(3, strange, logits[2])};
    for (proxytune::RequestId id = 1; id <= 3; ++id) {
      processor.AddRequest(id);
    }
    processor.Apply(rows);
    CHECK(rows[0].status == expected);
    CHECK(rows[1].status == RowStatus::kShifted);
    CHECK(rows[2].status == expected);
    CHECK(SameBits(logits[0], before));
    CHECK(!SameBits(logits[1], before));
    CHECK(SameBits(logits[2], before));
    CHECK(processor.FailureOf(1).find("tokens do not fit its context") != std::string::npos);
    CHECK(processor.FailureOf(2).empty());
    CHECK(!processor.FailureOf(3).empty());
    CHECK(processor.stats().failed == 2);
    std::vector<float> offsets(processor.vocabulary_size(), 7.0f);
    processor.ComputeOffsets(&rows[0], 1, offsets.data(), offsets.size());
    CHECK(SameBits(offsets, std::vector<float>(offsets.size(), 0.0f)));
  }
}

TEST_CASE("the tuned proxy may read another prompt, as tokens or as text") {
  proxytune::LogitsProcessor processor(Fixture());
  proxytune::Prompts tokens, text;
  for (const Case& c : Cases()) {
    if (c.tuned_prompt_tokens == c.prompt_tokens) {
      tokens.tuned = c.prompt_tokens;
      text.tuned_text = c.prompt;
    }
  }
  const Tokens history = {300, 301};
  processor.AddRequest(1, tokens);
  processor.AddRequest(2, text);
  processor.AddRequest(3);
  CHECK(Distance(Offset(processor, 1, history), Offset(processor, 2, history)) <= kRounding);
  CHECK(Distance(Offset(processor, 1, history), Offset(processor, 3, history)) > 0.1f);
}

TEST_CASE("a processor can be moved") {
  proxytune::LogitsProcessor first(Fixture());
  first.AddRequest(1);
  proxytune::LogitsProcessor second(std::move(first));
  CHECK(second.stats().requests == 1);
  CHECK(first.vocabulary_size() == 0);
  CHECK(first.TryAddRequest(2).message.find("moved from") != std::string::npos);
  first = std::move(second);
  CHECK(first.stats().requests == 1);
  CHECK(second.stats().requests == 0);
}

TEST_CASE("rows may be padded past the vocabulary") {
  proxytune::Options options = Fixture();
  options.vocabulary_size = 4160;
  proxytune::LogitsProcessor processor(options);
  processor.AddRequest(1);
  proxytune::LogitsProcessor plain(Fixture());
  plain.AddRequest(1);
  CHECK(processor.vocabulary_size() == 4160);
  std::vector<float> padded = Offset(processor, 1, Cases()[1].prompt_tokens);
  CHECK(std::vector<float>(padded.begin() + 4096, padded.end()) == std::vector<float>(64, 0.0f));
  padded.resize(4096);
  CHECK(Distance(padded, Offset(plain, 1, Cases()[1].prompt_tokens)) == 0);
}
