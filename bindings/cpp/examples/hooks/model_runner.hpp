// Runners as vLLM's next one: rows reorder at every step, each drafted token has a row, logits live on a device.
//
// Per step, for the batch that the scheduler has made:
//
//     shift.Begin(batch);                     // before the forward pass: the proxies start where they can
//     ... forward pass ...
//     shift.AddTo(device_logits, stream);     // after it, before the sampler

#ifndef PROXYTUNE_HOOKS_MODEL_RUNNER_HPP
#define PROXYTUNE_HOOKS_MODEL_RUNNER_HPP

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <proxytune/logits_processor.hpp>

namespace proxytune_hooks {

// What a scheduler knows of one request in one step.
struct ScheduledRequest {
  proxytune::RequestId id;
  const std::vector<std::int32_t>* tokens;  // prompt, what was generated, and then the draft
  std::size_t drafted;                      // tokens at the end that are only drafted
};

// `Device` has Offsets(rows, stride), pinned room for the offsets, and AddOffsets(logits, rows, stride, stream), which
// copies them over and adds them to the logits.
template <class Device>
class ModelRunnerShift {
 public:
  ModelRunnerShift(proxytune::LogitsProcessor& processor, Device& device) : processor_(processor), device_(device) {}

  // One row for the next token and one after each drafted token, request after request: as the logits will lie.
  void Begin(const std::vector<ScheduledRequest>& batch) {
    rows_.clear();
    for (const ScheduledRequest& request : batch) {
      for (std::size_t ahead = 0; ahead <= request.drafted; ++ahead) {
        proxytune::Row row;
        row.request_id = request.id;
        row.history = request.tokens->data();
        row.history_size = request.tokens->size() - request.drafted + ahead;
        rows_.push_back(row);
      }
    }
    processor_.Prefetch(rows_);
  }

  // Waits for the proxies and adds to `logits`, [rows, stride] on the device. Returns the rows, with their status.
  template <class Logits, class Stream>
  const std::vector<proxytune::Row>& AddTo(Logits&& logits, std::size_t stride, Stream&& stream) {
    float* offsets = device_.Offsets(rows_.size(), stride);
    processor_.ComputeOffsets(rows_, offsets, stride);
    device_.AddOffsets(std::forward<Logits>(logits), rows_.size(), stride, std::forward<Stream>(stream));
    return rows_;
  }

 private:
  proxytune::LogitsProcessor& processor_;
  Device& device_;
  std::vector<proxytune::Row> rows_;
};

}  // namespace proxytune_hooks

#endif  // PROXYTUNE_HOOKS_MODEL_RUNNER_HPP
