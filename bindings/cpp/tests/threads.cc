// Any thread may call any function, several at once.

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "support.hpp"

using namespace support;

TEST_CASE("threads that serve requests of their own do not disturb each other") {
  constexpr int kThreads = 4;
  proxytune::LogitsProcessor processor(Fixture());
  const Case& c = Cases()[1];
  processor.AddRequest(1000, c.Prompts());
  const std::vector<float> expected = Offset(processor, 1000, c.prompt_tokens);
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (proxytune::RequestId id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      for (int round = 0; round < 5; ++round) {
        processor.AddRequest(id, c.Prompts());
        std::vector<float> logits(processor.vocabulary_size());
        Row row = RowOf(id, c.prompt_tokens, logits);
        processor.Prefetch(&row, 1);
        processor.Apply(&row, 1);
        right += Distance(logits, expected) <= kRounding;
        processor.RemoveRequest(id);
        (void)processor.stats();
        (void)processor.TryRollback(id, 1);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(right == 5 * kThreads);
  CHECK(processor.stats().requests == 1);
}

TEST_CASE("one thread adds and removes while another applies") {
  proxytune::LogitsProcessor processor(Fixture());
  processor.AddRequest(1);
  std::atomic<bool> done{false};
  std::thread front([&] {
    for (proxytune::RequestId id = 2; !done; id = 2 + (id - 1) % 50) {
      processor.AddRequest(id);
      processor.RemoveRequest(id);
    }
  });
  Tokens history = Cases()[1].prompt_tokens;
  std::vector<float> logits(processor.vocabulary_size());
  for (int step = 0; step < 20; ++step) {
    Row row = RowOf(1, history, logits);
    processor.Apply(&row, 1);
    CHECK(row.status == RowStatus::kShifted);
    history.push_back(Cases()[1].tokens[static_cast<std::size_t>(step)]);
  }
  done = true;
  front.join();
  CHECK(processor.stats().shifted == 20);
}

TEST_CASE("several processors live side by side, and end on another thread than they began") {
  std::vector<std::thread> threads;
  std::atomic<int> shifted{0};
  for (int i = 0; i < 2; ++i) {
    auto processor = std::make_unique<proxytune::LogitsProcessor>(Fixture());
    processor->AddRequest(1);
    threads.emplace_back([&shifted, processor = std::move(processor)]() mutable {
      std::vector<float> logits(processor->vocabulary_size());
      Row row = RowOf(1, Cases()[0].prompt_tokens, logits);
      processor->Apply(&row, 1);
      shifted += row.status == RowStatus::kShifted;
      processor.reset();
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(shifted == 2);
}

TEST_CASE("all functions at once, on one request that comes and goes") {
  proxytune::LogitsProcessor processor(Fixture());
  const Case& c = Cases()[1];
  processor.AddRequest(1000, c.Prompts());
  const std::vector<float> expected = Offset(processor, 1000, c.prompt_tokens);
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    while (!done) {
      (void)processor.TryAddRequest(1, c.Prompts());
      (void)processor.TryRollback(1, 1);
      (void)processor.TryRemoveRequest(1);
    }
  });
  threads.emplace_back([&] {
    while (!done) {
      (void)processor.stats();
      wrong += processor.vocabulary_size() != expected.size() || processor.context_size() == 0;
      wrong += !processor.FailureOf(1000).empty();
    }
  });
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      std::vector<float> logits(expected.size());
      Row row = RowOf(1, c.prompt_tokens, logits);
      for (int round = 0; round < 30; ++round) {
        std::fill(logits.begin(), logits.end(), 0.0F);
        (void)processor.TryPrefetch(&row, 1);
        // Either the request is there, and all is as it would be alone, or it is not, and nothing is touched.
        const bool there = processor.TryApply(&row, 1).ok();
        wrong += Distance(logits, there ? expected : std::vector<float>(expected.size())) > kRounding;
      }
    });
  }
  for (std::size_t i = 2; i < threads.size(); ++i) {
    threads[i].join();
  }
  done = true;
  threads[0].join();
  threads[1].join();
  CHECK(wrong == 0);
}
