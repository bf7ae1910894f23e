// What is given wrongly is named, changes nothing, and leaves the processor working.

#include <doctest/doctest.h>

#include <functional>

#include "support.hpp"

using namespace support;
using proxytune::StatusCode;

namespace {

void CheckRefused(const proxytune::Status& status, StatusCode code, const std::string& words) {
  CHECK(status.code == code);
  CAPTURE(status.message);
  CAPTURE(words);
  CHECK(status.message.find(words) != std::string::npos);
}

proxytune::Status Loaded(const std::function<void(proxytune::Options&)>& change) {
  proxytune::Options options = Fixture();
  change(options);
  proxytune::Status status;
  const auto processor = proxytune::LogitsProcessor::Create(options, &status);
  CHECK((processor == nullptr) == !status.ok());
  return status;
}

}  // namespace

TEST_CASE("options that cannot be used") {
  CheckRefused(Loaded([](auto& o) { o.config = "/no/such.toml"; }), StatusCode::kFile, "/no/such.toml");
  CheckRefused(Loaded([](auto& o) { o.tuned = "/no/such.gguf"; }), StatusCode::kFile, "/no/such.gguf");
  CheckRefused(Loaded([](auto& o) { o.tuned.clear(); }), StatusCode::kInvalidArgument, "tuned: got nothing");
  CheckRefused(Loaded([](auto& o) { o.host.clear(); }), StatusCode::kInvalidArgument, "host: got nothing");
  CheckRefused(Loaded([](auto& o) { o.alpha = std::nanf(""); }), StatusCode::kInvalidArgument, "got NaN");
  CheckRefused(Loaded([](auto& o) { o.on_error = static_cast<proxytune::OnError>(9); }), StatusCode::kInvalidArgument,
               "on_error: got 9");
  CheckRefused(Loaded([](auto& o) { o.vocabulary_size = 100; }), StatusCode::kInvalidArgument,
               "vocabulary_size: got 100, expected at least the 4096");
  const TemporaryFile broken("[proxy_tuning]\nalpah = 1\n", ".toml");
  CheckRefused(Loaded([&](auto& o) { o.config = broken.path; }), StatusCode::kFile, "line 2");
  const TemporaryFile no_model("GGUF or not", ".gguf");
  CheckRefused(Loaded([&](auto& o) { o.untuned = no_model.path; }), StatusCode::kFile, no_model.path);
  CHECK(proxytune::LogitsProcessor::Create(proxytune::Options{}, nullptr) == nullptr);
  CHECK_THROWS_AS(proxytune::LogitsProcessor(proxytune::Options{}), proxytune::Error);
}

TEST_CASE("a host with another vocabulary") {
  // A tokenizer with words that the proxies do not know.
  std::string vocabulary;
  for (int i = 0; i < 500; ++i) {
    vocabulary += (i == 0 ? "\"word" : ", \"word") + std::to_string(i) + "\": " + std::to_string(i);
  }
  const std::string tokenizer = R"({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {)" +
                                vocabulary + R"(}, "unk_token": "word0"}})";
  const TemporaryFile file(tokenizer, ".json");
  CheckRefused(Loaded([&](auto& o) { o.host = file.path; }), StatusCode::kVocabulary, "are common");
}

TEST_CASE("requests that cannot be") {
  proxytune::LogitsProcessor processor(Fixture());
  processor.AddRequest(1);
  CheckRefused(processor.TryAddRequest(1), StatusCode::kInvalidArgument, "request: got 1, expected a number that no other");
  CheckRefused(processor.TryAddRequest(2, {}, std::nanf("")), StatusCode::kInvalidArgument, "alpha: got NaN");
  CheckRefused(processor.TryAddRequest(2, {{}, {300}, "text"}), StatusCode::kInvalidArgument, "one of them");
  CheckRefused(processor.TryAddRequest(2, {{}, {}, "\xff\xfe"}), StatusCode::kInvalidArgument, "UTF-8");
  CheckRefused(processor.TryRemoveRequest(2), StatusCode::kInvalidArgument, "request: got 2, expected a request that was added");
  CheckRefused(processor.TryRollback(2, 0), StatusCode::kInvalidArgument, "request: got 2");
  CheckRefused(processor.TryRollback(1, 1), StatusCode::kInvalidArgument, "rollback: got 1");
  CHECK_THROWS_AS(processor.FailureOf(2), proxytune::Error);
  CHECK(processor.stats().requests == 1);
}

TEST_CASE("rows that cannot be: the call is refused as a whole, before anything is touched") {
  proxytune::LogitsProcessor processor(Fixture());
  processor.AddRequest(1);
  processor.AddRequest(2, {{300, 301}, {302}, {}});
  const std::size_t size = processor.vocabulary_size();
  const Tokens history = {300, 301, 302}, other = {301, 301};
  std::vector<float> good(size), bad(size + 1);
  const std::vector<float> before = good;

  const auto refused = [&](const char* words, const std::function<void(Row&)>& change) {
    std::vector<Row> rows = {RowOf(1, history, good), RowOf(1, history, bad)};
    rows[1].logits_size = size;
    change(rows[1]);
    CheckRefused(processor.TryApply(rows), StatusCode::kInvalidArgument, words);
    CHECK(rows[0].status == RowStatus::kPending);
    CHECK(SameBits(good, before));
    CHECK_THROWS_AS(processor.Apply(rows), proxytune::Error);
  };
  refused("rows[1].request: got 9", [](Row& r) { r.request_id = 9; });
  refused("rows[1].history: got null", [](Row& r) { r.history = nullptr; });
  refused("rows[1].history: got no tokens", [](Row& r) { r.history_size = 0; });
  refused("rows[1].logits: got null", [](Row& r) { r.logits = nullptr; });
  refused("rows[1].logits: got 4095 values, expected 4096", [](Row& r) { r.logits_size = 4095; });
  refused("rows[1].logits: got 4097 values", [](Row& r) { r.logits_size = 4097; });
  refused("not aligned", [&](Row& r) { r.logits = reinterpret_cast<char*>(bad.data()) + 1; });
  refused("not aligned", [&](Row& r) {
    r.history = reinterpret_cast<const TokenId*>(reinterpret_cast<const char*>(history.data()) + 1);
    r.history_size = 2;
  });
  refused("rows[1].dtype: got 7", [](Row& r) { r.dtype = static_cast<proxytune::DType>(7); });
  refused("begin otherwise than the request's prompt", [&](Row& r) {
    r.request_id = 2;
    r.history = other.data();
    r.history_size = other.size();
  });

  CheckRefused(processor.TryApply(static_cast<Row*>(nullptr), 1), StatusCode::kInvalidArgument, "rows: got null");
  CheckRefused(processor.TryPrefetch(nullptr, 2), StatusCode::kInvalidArgument, "rows: got null");
  CHECK(processor.TryApply(static_cast<Row*>(nullptr), 0).ok());
  std::vector<Row> rows = {RowOf(1, history), RowOf(1, history)};
  std::vector<float> out(2 * size);
  CheckRefused(processor.TryComputeOffsets(rows, nullptr, size), StatusCode::kInvalidArgument, "out: got null");
  CheckRefused(processor.TryComputeOffsets(rows, out.data(), size - 1), StatusCode::kInvalidArgument, "stride: got 4095");
  CheckRefused(processor.TryComputeOffsets(rows, out.data(), SIZE_MAX), StatusCode::kInvalidArgument, "stride: got");
  CHECK(SameBits(out, std::vector<float>(out.size())));

  // And then it works as ever.
  CHECK(processor.stats().rounds == 0);
  Row row = RowOf(1, history, good);
  processor.Apply(&row, 1);
  CHECK(row.status == RowStatus::kShifted);
}

TEST_CASE("no rows may be null") {
  proxytune::LogitsProcessor processor(Fixture());
  proxytune::Row* none = nullptr;
  CHECK_NOTHROW(processor.Prefetch(none, 0));
  CHECK_NOTHROW(processor.Apply(none, 0));
  CHECK_FALSE(processor.TryPrefetch(none, 1).ok());
  CHECK_FALSE(processor.TryApply(none, 1).ok());
}
