// What an engine does, timed on this side of the border: calls of the public class in a loop, and a count of this thread's operator new.

#include <time.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "proxytune/logits_processor.hpp"

namespace {

// Of this thread alone: others are not on the path.
thread_local std::uint64_t allocations = 0;

struct Calls {
  proxytune::LogitsProcessor processor;
  std::vector<std::vector<proxytune::TokenId>> histories;
  std::vector<std::vector<float>> logits;
  std::vector<proxytune::Row> rows;
};

}  // namespace

void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) {
    return memory;
  }
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

extern "C" {

std::uint64_t calls_allocations() { return allocations; }

// A processor with `rows` requests of 64 tokens each, a row for each. Null where the proxies cannot be loaded.
Calls* calls_open(const char* tuned, const char* untuned, const char* host, std::size_t rows, float alpha) {
  proxytune::Options options;
  options.tuned = tuned;
  options.untuned = untuned;
  options.host = host;
  options.context = 128;
  options.sequences = rows;
  auto processor = proxytune::LogitsProcessor::Create(options, nullptr);
  if (processor == nullptr) {
    return nullptr;
  }
  auto* calls = new Calls{std::move(*processor), {}, {}, std::vector<proxytune::Row>(rows)};
  for (std::size_t i = 0; i < rows; ++i) {
    calls->processor.AddRequest(i, {}, alpha);
    calls->histories.emplace_back(64, static_cast<proxytune::TokenId>(300 + i));
    calls->logits.emplace_back(calls->processor.vocabulary_size());
    proxytune::Row& row = calls->rows[i];
    row.request_id = i;
    row.history = calls->histories[i].data();
    row.history_size = calls->histories[i].size();
    row.logits = calls->logits[i].data();
    row.logits_size = calls->logits[i].size();
  }
  return calls;
}

void calls_close(Calls* calls) { delete calls; }

// Nanoseconds that this thread has computed for: unlike the time of day, the same on a busy machine.
std::uint64_t calls_now() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// Nanoseconds that so many calls of Apply take; the histories stay as they are.
std::uint64_t calls_apply(Calls* calls, std::size_t rows, std::uint64_t times) {
  const std::uint64_t begin = calls_now();
  for (std::uint64_t i = 0; i < times; ++i) {
    if (!calls->processor.TryApply(calls->rows.data(), rows).ok()) {
      std::abort();
    }
  }
  return calls_now() - begin;
}

}  // extern "C"
