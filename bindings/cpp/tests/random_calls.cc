// Calls in any order, right and wrong ones: each is done or refused as a plain model of the state says, and what is done
// is right. Under the sanitizers this also looks for memory that is lost, used too late or shared without a lock.

#include <doctest/doctest.h>

#include <map>
#include <optional>
#include <random>

#include "support.hpp"

using namespace support;
using proxytune::LogitsProcessor;
using proxytune::StatusCode;

namespace {

class RandomCalls {
 public:
  explicit RandomCalls(unsigned seed) : random_(seed), processor_(Options()), alone_(Options()) { alone_.AddRequest(0); }

  void Call() {
    const auto id = static_cast<proxytune::RequestId>(Below(6));
    switch (Below(9)) {
      case 0: return Add(id);
      case 1: return Expect(processor_.TryRemoveRequest(id), requests_.erase(id) == 1);
      case 2: return Rollback(id);
      case 3: return Move();
      case 4: return Look(id);
      case 5: return Prefetch();
      case 6: return Offsets();
      default: return Apply();
    }
  }

 private:
  struct Request {
    float alpha;
    Tokens history;
  };

  static proxytune::Options Options() {
    proxytune::Options options = Fixture();
    options.context = 48;  // soon full
    options.sequences = 3;  // fewer than there are requests
    return options;
  }

  std::size_t Below(std::size_t limit) { return random_() % limit; }

  static void Expect(const proxytune::Status& status, bool good) {
    CAPTURE(status.message);
    CHECK(status.code == (good ? StatusCode::kOk : StatusCode::kInvalidArgument));
    CHECK(status.message.empty() == good);
  }

  void Add(proxytune::RequestId id) {
    const float alphas[] = {0.0f, 0.5f, -1.0f, std::nanf("")};
    const float alpha = alphas[Below(4)];
    const bool good = !std::isnan(alpha) && requests_.count(id) == 0;
    Expect(processor_.TryAddRequest(id, {}, alpha), good);
    if (good) {
      requests_[id] = {alpha, {static_cast<TokenId>(Below(300))}};
    }
  }

  // How many tokens were read depends on what ran before; none can always be taken back.
  void Rollback(proxytune::RequestId id) { Expect(processor_.TryRollback(id, 0), requests_.count(id) == 1); }

  void Move() {
    LogitsProcessor other = std::move(processor_);
    CHECK(processor_.vocabulary_size() == 0);
    CHECK(!processor_.TryAddRequest(9).ok());
    processor_ = std::move(other);
  }

  void Look(proxytune::RequestId id) {
    CHECK(processor_.stats().requests == requests_.size());
    if (requests_.count(id) == 0) {
      CHECK_THROWS_AS(processor_.FailureOf(id), proxytune::Error);
    } else {
      CHECK_NOTHROW(processor_.FailureOf(id));
    }
  }

  // Rows of some requests, whose texts grow, shrink or become others; now and then one that cannot be.
  bool Draw(std::vector<Row>& rows) {
    bool good = true;
    for (auto& [id, request] : requests_) {
      Tokens& history = request.history;
      switch (Below(6)) {
        case 0: continue;
        case 1: history.resize(1 + Below(history.size())); break;
        case 2: history = {static_cast<TokenId>(Below(300)), static_cast<TokenId>(Below(300))}; break;
        case 3: history.insert(history.end(), 5, static_cast<TokenId>(Below(300))); break;
        default: history.push_back(static_cast<TokenId>(Below(4000)));
      }
      rows.push_back(RowOf(id, history));
    }
    if (Below(8) == 0) {
      static const Tokens kOne = {1};
      rows.push_back(RowOf(77, kOne));
      good = false;
    }
    std::shuffle(rows.begin(), rows.end(), random_);
    return good;
  }

  void Prefetch() {
    std::vector<Row> rows;
    const bool good = Draw(rows);
    Expect(processor_.TryPrefetch(rows), good);
  }

  void Offsets() {
    std::vector<Row> rows;
    const bool good = Draw(rows);
    const std::size_t size = processor_.vocabulary_size();
    std::vector<float> out(rows.size() * size);
    Expect(processor_.TryComputeOffsets(rows, out.data(), size), good);
    for (std::size_t i = 0; good && i < rows.size(); ++i) {
      Compare(rows[i], {out.begin() + static_cast<long>(i * size), out.begin() + static_cast<long>((i + 1) * size)});
    }
  }

  void Apply() {
    std::vector<Row> rows;
    const bool good = Draw(rows);
    std::vector<std::vector<float>> logits(rows.size(), std::vector<float>(processor_.vocabulary_size()));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i].logits = logits[i].data();
      rows[i].logits_size = logits[i].size();
    }
    Expect(processor_.TryApply(rows), good);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (good) {
        Compare(rows[i], logits[i]);
      } else {
        CHECK(rows[i].status == RowStatus::kPending);
      }
    }
  }

  // A row against a processor that has this text alone.
  void Compare(const Row& row, const std::vector<float>& shift) {
    const Request& request = requests_.at(row.request_id);
    const bool fits = row.history_size <= processor_.context_size();
    const bool none = request.alpha == 0.0f || !fits;
    CHECK(row.status == (fits || request.alpha == 0.0f ? RowStatus::kShifted : RowStatus::kUnshifted));
    std::vector<float> expected(shift.size());
    if (!none) {
      expected = Offset(alone_, 0, request.history);
      for (float& value : expected) {
        value *= request.alpha;
      }
    }
    REQUIRE(Distance(shift, expected) <= (none ? 0.0f : kRounding));
  }

  std::mt19937 random_;
  LogitsProcessor processor_, alone_;
  std::map<proxytune::RequestId, Request> requests_;
};

}  // namespace

TEST_CASE("calls in any order are done or refused, and what is done is right") {
  for (unsigned seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    RandomCalls calls(seed);
    for (int i = 0; i < 150; ++i) {
      calls.Call();
    }
  }
}
