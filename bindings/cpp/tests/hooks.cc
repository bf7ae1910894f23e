// The hooks of examples/hooks in stand-ins of the engines: same signatures, same result as by call.

#include <doctest/doctest.h>

#include "hooks/model_runner.hpp"
#include "hooks/onnxruntime_genai.hpp"
#include "hooks/tensorrt_llm.hpp"
#include "support.hpp"

using namespace support;
namespace tle = tensorrt_llm::executor;

namespace {

// What a hook should have made of a row of zeros.
struct Oracle {
  proxytune::LogitsProcessor processor{Fixture()};
  Oracle() { processor.AddRequest(1); }
  float Distance(const float* row, const Tokens& history) {
    return support::Distance(std::vector<float>(row, row + processor.vocabulary_size()), Offset(processor, 1, history));
  }
};

const Tokens kFirst = {300, 301, 302};
const Tokens kSecond = {310, 311};

}  // namespace

TEST_CASE("TensorRT-LLM: a batched logits post-processor, on the host and on the device, with beams") {
  Oracle oracle;
  proxytune::LogitsProcessor processor(Fixture());
  const std::size_t size = processor.vocabulary_size();
  proxytune_hooks::TensorRtLlm hook(processor, [](tle::StreamPtr const& stream) { ++stream->synchronized; });
  const tle::LogitsPostProcessorBatched callback = std::ref(hook);

  const auto stream = std::make_shared<tensorrt_llm::runtime::CudaStream>();
  const tle::BeamTokens two = {kFirst, kSecond}, one = {kSecond};
  std::vector<tle::Tensor> logits = {{tle::DataType::kFP32, tle::MemoryType::kGPU, 2 * size},
                                     {tle::DataType::kFP32, tle::MemoryType::kCPU, size}};
  callback({7, 8}, logits, {std::cref(two), std::cref(one)}, stream, {std::nullopt, 80});
  CHECK(hook.last().ok());
  CHECK(stream->synchronized == 2);
  CHECK(processor.stats().rounds == 1);
  const auto* beams = static_cast<const float*>(logits[0].getData());
  CHECK(oracle.Distance(beams, kFirst) <= kRounding);
  CHECK(oracle.Distance(beams + size, kSecond) <= kRounding);
  CHECK(oracle.Distance(static_cast<const float*>(logits[1].getData()), kSecond) <= kRounding);
  CHECK(processor.stats().requests == 2);
  hook.Finish(7);
  hook.Finish(80);
  hook.Finish(80);
  CHECK(processor.stats().requests == 0);
}

TEST_CASE("onnxruntime-genai: between logits and choice, going back included") {
  Oracle oracle;
  proxytune::LogitsProcessor processor(Fixture());
  const std::size_t size = processor.vocabulary_size();
  OgaGenerator generator;
  generator.sequences = {kFirst, kSecond};
  for (proxytune::RequestId id : {5, 6}) {
    processor.AddRequest(id);
  }
  for (int step = 0; step < 3; ++step) {
    generator.logits = {{2, 1, static_cast<std::int64_t>(size)}, std::vector<float>(2 * size)};
    proxytune_hooks::ShiftLogits(generator, processor, {5, 6});
    CHECK(oracle.Distance(generator.logits.data.data(), generator.sequences[0]) <= kRounding);
    CHECK(oracle.Distance(generator.logits.data.data() + size, generator.sequences[1]) <= kRounding);
    generator.GenerateNextToken();
  }
  generator.sequences.pop_back();
  proxytune_hooks::RewindTo(generator, processor, 5, kFirst.size() + 1);
  generator.logits = {{1, 1, static_cast<std::int64_t>(size)}, std::vector<float>(size)};
  proxytune_hooks::ShiftLogits(generator, processor, {5});
  CHECK(oracle.Distance(generator.logits.data.data(), generator.sequences[0]) <= kRounding);
}

namespace {

// Device memory that is ordinary memory.
struct Device {
  std::vector<float> pinned;
  float* Offsets(std::size_t rows, std::size_t stride) {
    pinned.assign(rows * stride, 0.0f);
    return pinned.data();
  }
  void AddOffsets(std::vector<float>& logits, std::size_t rows, std::size_t stride, int /*stream*/) {
    for (std::size_t i = 0; i < rows * stride; ++i) {
      logits[i] += pinned[i];
    }
  }
};

}  // namespace

TEST_CASE("a runner whose rows reorder, with a row for each drafted token") {
  Oracle oracle;
  proxytune::LogitsProcessor processor(Fixture());
  const std::size_t stride = processor.vocabulary_size() + 64;
  Device device;
  proxytune_hooks::ModelRunnerShift<Device> shift(processor, device);
  processor.AddRequest(1);
  processor.AddRequest(2);
  Tokens first = kFirst, second = kSecond;
  for (int step = 0; step < 4; ++step) {
    // The first has two drafted tokens at its end, of which one will be taken and the other replaced.
    first.insert(first.end(), {320 + step, 330});
    std::vector<proxytune_hooks::ScheduledRequest> batch = {{1, &first, 2}, {2, &second, 0}};
    if (step % 2 == 1) {
      std::swap(batch[0], batch[1]);
    }
    shift.Begin(batch);
    std::vector<float> logits(4 * stride);
    const std::vector<Row>& rows = shift.AddTo(logits, stride, 0);
    REQUIRE(rows.size() == 4);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Tokens history(rows[i].history, rows[i].history + rows[i].history_size);
      CHECK(rows[i].status == RowStatus::kShifted);
      CHECK(oracle.Distance(logits.data() + i * stride, history) <= kRounding);
    }
    first.back() = 331;
    second.push_back(340 + step);
  }
  CHECK(processor.stats().rounds == 4);
}
