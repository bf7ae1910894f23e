// The serving loop against the oracle: the paper's algorithm in plain transformers on the same float32 weights.

#include <doctest/doctest.h>

#include <map>

#include "serving_loop/engine.hpp"
#include "support.hpp"

using namespace support;

namespace {

EngineOptions Host(int sequences) {
  EngineOptions options;
  options.model = Path("tests/fixtures/host-f32.gguf");
  options.sequences = sequences;
  options.threads = 1;
  options.f32_cache = true;
  return options;
}

Request RequestOf(const Case& c, std::uint64_t id) {
  Request request;
  request.id = id;
  request.prompt = c.prompt_tokens;
  request.max_tokens = c.tokens.size();
  request.ignore_end = true;
  request.prompts = c.Prompts();
  request.alpha = c.alpha;
  return request;
}

// Requests that come in every few steps, so that all stages of all stand in one batch.
std::map<std::uint64_t, Finished> Serve(Engine& engine, std::vector<Request> requests, std::size_t every) {
  std::map<std::uint64_t, Finished> finished;
  std::size_t next = 0;
  bool busy = true;
  for (std::size_t step = 0; busy || next < requests.size(); ++step) {
    if (every == 0) {
      for (; next < requests.size(); ++next) {
        engine.Submit(requests[next]);
      }
    } else if (step % every == 0 && next < requests.size()) {
      engine.Submit(requests[next++]);
    }
    busy = engine.Step();
    for (Finished& one : engine.TakeFinished()) {
      finished[one.id] = std::move(one);
    }
  }
  return finished;
}

}  // namespace

TEST_CASE("greedy tokens are the oracle's, whoever shares the batch") {
  for (const auto& [sequences, every] : std::vector<std::pair<int, std::size_t>>{{1, 0}, {5, 7}, {12, 0}}) {
    proxytune::Options options = Fixture();
    options.sequences = static_cast<std::size_t>(sequences);
    proxytune::LogitsProcessor processor(options);
    Engine engine(Host(sequences), &processor);
    std::vector<Request> requests;
    for (const Case& c : Cases()) {
      requests.push_back(RequestOf(c, 100 + requests.size()));
    }
    REQUIRE(requests.size() >= 10);
    auto finished = Serve(engine, requests, every);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CAPTURE(Cases()[i].name);
      CAPTURE(sequences);
      CHECK(finished[100 + i].error.empty());
      CHECK(finished[100 + i].tokens == Cases()[i].tokens);
    }
    const proxytune::Stats stats = processor.stats();
    CHECK(stats.requests == 0);
    CHECK(stats.failed + stats.ignored == 0);
  }
}

TEST_CASE("greedy tokens are the oracle's where the proxies work while the host does") {
  const TemporaryFile config("[proxy_tuning]\nplacement = \"together\"\n", ".toml");
  proxytune::Options options = Fixture();
  options.config = config.path;
  proxytune::LogitsProcessor processor(options);
  Engine engine(Host(4), &processor);
  std::vector<Request> requests;
  for (std::size_t i = 0; i < 4; ++i) {
    requests.push_back(RequestOf(Cases()[i], i));
  }
  auto finished = Serve(engine, requests, 5);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(finished[i].tokens == Cases()[i].tokens);
  }
}

TEST_CASE("the host alone, and alpha 0, give the oracle's host tokens") {
  proxytune::LogitsProcessor processor(Fixture());
  for (proxytune::LogitsProcessor* with : {&processor, static_cast<proxytune::LogitsProcessor*>(nullptr)}) {
    Engine engine(Host(4), with);
    std::vector<Request> requests;
    for (const Case& c : Cases()) {
      requests.push_back(RequestOf(c, requests.size()));
      requests.back().alpha = 0.0f;
    }
    auto finished = Serve(engine, requests, 0);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CHECK(finished[i].tokens == Cases()[i].host_tokens);
    }
  }
  CHECK(processor.stats().rounds == 0);
}

TEST_CASE("a request that cannot be served leaves the others alone") {
  proxytune::LogitsProcessor processor(Fixture());
  Engine engine(Host(3), &processor);
  std::vector<Request> requests;
  for (std::size_t i = 0; i < 3; ++i) {
    requests.push_back(RequestOf(Cases()[i], i));
  }
  requests.push_back(requests[0]);
  requests[3].id = 3;
  requests[3].alpha = std::nanf("");
  requests.push_back(requests[0]);
  requests[4].id = 4;
  requests[4].prompt.clear();
  auto finished = Serve(engine, requests, 1);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(finished[i].tokens == Cases()[i].tokens);
  }
  CHECK(finished[3].error.find("alpha: got NaN") != std::string::npos);
  CHECK(finished[4].error.find("empty") != std::string::npos);
}

TEST_CASE("offsets are the oracle's") {
  proxytune::LogitsProcessor processor(Fixture());
  for (const Case& c : Cases()) {
    const auto golden = GoldenRows(c.name + ".offset");
    processor.AddRequest(1, c.Prompts(), c.alpha);
    for (std::size_t i = 0; i < c.positions.size(); ++i) {
      Tokens history = c.prompt_tokens;
      history.insert(history.end(), c.tokens.begin(), c.tokens.begin() + static_cast<std::ptrdiff_t>(c.positions[i]));
      CAPTURE(c.name);
      CHECK(Distance(Offset(processor, 1, history), golden[i]) <= kRounding);
    }
    processor.RemoveRequest(1);
  }
}
