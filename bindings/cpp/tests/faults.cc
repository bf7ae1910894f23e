// Proxies that fail on command in the C++ library: the engine lives, a row's neighbours are those of a quiet run, what failed is
// counted and explained, and memory returns. Built with the feature fault-injection alone, see CMakeLists.txt.

#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "support.hpp"

using namespace support;
using Clock = std::chrono::steady_clock;

namespace {

// Stands in no golden case.
constexpr TokenId kPoison = 4000;

// The file that says what the tuned proxy does; it is looked at every 5 ms.
class Switch {
 public:
  Switch() : file_("", ".txt") { setenv("PROXYTUNE_FAULT", file_.path.c_str(), 1); }
  ~Switch() { unsetenv("PROXYTUNE_FAULT"); }
  void Set(const std::string& fault) {
    std::ofstream(file_.path) << fault;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }

 private:
  TemporaryFile file_;
};

// A processor with requests, each a row in one batch.
class Batch {
 public:
  explicit Batch(const std::string& settings, proxytune::OnError on_error = proxytune::OnError::kHost)
      : config_("[proxy_tuning]\n" + settings, ".toml"), processor_(Options(on_error)) {
    for (const Case& c : Cases()) {
      if (c.prompt_tokens == c.tuned_prompt_tokens && c.prompt_tokens.size() < 100) {
        Add(c.prompt_tokens);
      }
    }
  }

  void Add(Tokens history) {
    processor_.AddRequest(histories_.size(), {}, 1.0f);
    histories_.push_back(std::move(history));
  }

  // Applies to all rows at once.
  void Apply() {
    logits_.assign(histories_.size(), std::vector<float>(processor_.vocabulary_size()));
    rows_.clear();
    for (std::size_t i = 0; i < histories_.size(); ++i) {
      rows_.push_back(RowOf(i, histories_[i], logits_[i]));
    }
    processor_.Apply(rows_);
  }

  std::size_t size() const { return histories_.size(); }
  const Row& row(std::size_t i) const { return rows_[i]; }
  const std::vector<float>& logits(std::size_t i) const { return logits_[i]; }
  proxytune::LogitsProcessor& processor() { return processor_; }

  bool All(RowStatus status) const {
    return std::all_of(rows_.begin(), rows_.end(), [&](const Row& row) { return row.status == status; });
  }

  // Applies until the proxies answer again; then all is as it was.
  void Recover(const std::vector<std::vector<float>>& quiet) {
    const auto begin = Clock::now();
    do {
      Apply();
      REQUIRE(Clock::now() - begin < std::chrono::seconds(120));
    } while (!All(RowStatus::kShifted));
    for (std::size_t i = 0; i < quiet.size(); ++i) {
      CHECK(Distance(logits_[i], quiet[i]) <= kRounding);
    }
  }

  std::vector<std::vector<float>> Quiet() {
    Apply();
    REQUIRE(All(RowStatus::kShifted));
    return logits_;
  }

  // Another token at the end, so that the next step is no step of before.
  void Step(TokenId token) {
    for (Tokens& history : histories_) {
      history.push_back(token);
    }
  }
  void Back() {
    for (Tokens& history : histories_) {
      history.pop_back();
    }
  }

 private:
  proxytune::Options Options(proxytune::OnError on_error) const {
    proxytune::Options options = Fixture();
    options.config = config_.path;
    options.on_error = on_error;
    return options;
  }

  TemporaryFile config_;
  proxytune::LogitsProcessor processor_;
  std::vector<Tokens> histories_;
  std::vector<std::vector<float>> logits_;
  std::vector<Row> rows_;
};

struct Kind {
  const char *fault, *words;
};
const Kind kKinds[] = {{"fail", "a failure on command"},
                       {"nan", "are NaN"},
                       {"short", "a row of 4095"},
                       {"panic", "a panic on command"}};

// KiB of memory.
long Resident() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmRSS:", 0) == 0) {
      return std::strtol(line.c_str() + 6, nullptr, 10);
    }
  }
  return 0;
}

}  // namespace

TEST_CASE("passes that always fail leave the host's rows to the bit, are counted and explained, and end with the fault") {
  for (const Kind& kind : kKinds) {
    for (const auto policy : {proxytune::OnError::kHost, proxytune::OnError::kStop}) {
      CAPTURE(std::string(kind.fault));
      Switch fault;
      Batch batch("", policy);
      const auto quiet = batch.Quiet();
      fault.Set(kind.fault);
      batch.Step(300);
      batch.Apply();
      CHECK(batch.All(policy == proxytune::OnError::kHost ? RowStatus::kUnshifted : RowStatus::kStop));
      for (std::size_t i = 0; i < batch.size(); ++i) {
        CHECK(SameBits(batch.logits(i), std::vector<float>(batch.logits(i).size())));
        CHECK(batch.processor().FailureOf(i).find(kind.words) != std::string::npos);
      }
      CHECK(batch.processor().stats().failed == batch.size());
      fault.Set("none");
      batch.Back();
      batch.Recover(quiet);
    }
  }
}

TEST_CASE("a fault of one row is no other one's") {
  for (const Kind& kind : kKinds) {
    CAPTURE(std::string(kind.fault));
    Switch fault;
    Batch batch("");
    const auto quiet = batch.Quiet();
    fault.Set(std::string(kind.fault) + " at " + std::to_string(kPoison));
    batch.Add({300, 301, kPoison});
    batch.Apply();
    for (std::size_t i = 0; i < quiet.size(); ++i) {
      CHECK(batch.row(i).status == RowStatus::kShifted);
      CHECK(Distance(batch.logits(i), quiet[i]) <= kRounding);
    }
    CHECK(batch.row(quiet.size()).status == RowStatus::kUnshifted);
    CHECK(batch.processor().FailureOf(quiet.size()).find(kind.words) != std::string::npos);
    CHECK(batch.processor().stats().failed == 1);
  }
}

TEST_CASE("a single fault of a batch is nobody's") {
  for (const Kind& kind : kKinds) {
    CAPTURE(std::string(kind.fault));
    Switch fault;
    Batch batch("");
    const auto quiet = batch.Quiet();
    batch.Step(300);
    const auto next = batch.Quiet();
    batch.Back();
    batch.Recover(quiet);
    fault.Set(std::string(kind.fault) + " once");
    batch.Step(300);
    batch.Recover(next);
    CHECK(batch.processor().stats().failed == 0);
  }
}

TEST_CASE("a proxy that hangs costs one wait, and the end of the processor no longer") {
  for (const char* placement : {"auto", "in-turn", "side-by-side", "together"}) {
    CAPTURE(placement);
    Switch fault;
    const auto begin = Clock::now();
    {
      Batch batch("proxy_timeout = 1.0\nplacement = \"" + std::string(placement) + "\"");
      const auto quiet = batch.Quiet();
      fault.Set("hang");
      batch.Step(300);
      // A wait for each of these would take five minutes.
      for (int i = 0; i < 300; ++i) {
        batch.Apply();
        // Which rows go by what was computed ahead depends on the placement; a step on, none can.
        CHECK(batch.All(RowStatus::kUnshifted));
      }
      CHECK(batch.processor().FailureOf(0).find("no answer within 1 s") != std::string::npos);
      fault.Set("none");
      batch.Back();
      batch.Recover(quiet);
      fault.Set("hang");
      batch.Step(301);
      batch.Apply();
    }
    CHECK(Clock::now() - begin < std::chrono::seconds(120));
    fault.Set("none");
  }
}

TEST_CASE("a proxy a hundred times slower is waited for, within the limit") {
  Switch fault;
  for (const char* settings : {"", "proxy_timeout = 60.0"}) {
    Batch batch(settings);
    const auto quiet = batch.Quiet();
    batch.Step(300);
    const auto next = batch.Quiet();
    batch.Back();
    batch.Recover(quiet);
    fault.Set("slow 20");
    batch.Step(300);
    batch.Apply();
    CHECK(batch.All(RowStatus::kShifted));
    for (std::size_t i = 0; i < next.size(); ++i) {
      CHECK(Distance(batch.logits(i), next[i]) <= kRounding);
    }
    fault.Set("none");
  }
}

TEST_CASE("failures leave nothing behind") {
  for (const char* kind : {"fail", "panic", "hang"}) {
    CAPTURE(std::string(kind));
    Switch fault;
    Batch batch("proxy_timeout = 0.5");
    const auto quiet = batch.Quiet();
    fault.Set(kind);
    const auto many = [&] {
      for (TokenId token = 300; token < 500; ++token) {
        batch.Step(token);
        batch.Apply();
        batch.Back();
      }
    };
    many();
    const long before = Resident();
    many();
    CHECK(Resident() - before < 4096);
    fault.Set("none");
    batch.Recover(quiet);
  }
}

TEST_CASE("a proxy's file that is cut short while in use is missed by nobody") {
  std::ifstream whole(Path("tests/fixtures/tuned-f32.gguf"), std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(whole)), std::istreambuf_iterator<char>());
  const TemporaryFile copy(bytes, ".gguf");
  proxytune::Options options = Fixture();
  options.tuned = copy.path;
  proxytune::LogitsProcessor processor(options), intact(Fixture());
  REQUIRE(truncate(copy.path.c_str(), 1000) == 0);
  for (const Case& c : Cases()) {
    processor.AddRequest(1);
    intact.AddRequest(1);
    CHECK(SameBits(Offset(processor, 1, c.prompt_tokens), Offset(intact, 1, c.prompt_tokens)));
    processor.RemoveRequest(1);
    intact.RemoveRequest(1);
  }
}

TEST_CASE("caches beyond all memory are an error, and a context that is full concerns its own row") {
  const TemporaryFile vast("[proxy_tuning]\nctx = 100000000\n", ".toml");
  proxytune::Options options = Fixture();
  options.config = vast.path;
  proxytune::Status status;
  CHECK(proxytune::LogitsProcessor::Create(options, &status) == nullptr);
  CAPTURE(status.message);
  CHECK(status.code == proxytune::StatusCode::kOutOfMemory);

  Batch batch("ctx = 80");
  const auto quiet = batch.Quiet();
  batch.Add(Tokens(81, 300));
  batch.Apply();
  for (std::size_t i = 0; i < quiet.size(); ++i) {
    CHECK(batch.row(i).status == RowStatus::kShifted);
    CHECK(Distance(batch.logits(i), quiet[i]) <= kRounding);
  }
  CHECK(batch.row(quiet.size()).status == RowStatus::kUnshifted);
  CHECK(batch.processor().FailureOf(quiet.size()).find("context of 80") != std::string::npos);
}
