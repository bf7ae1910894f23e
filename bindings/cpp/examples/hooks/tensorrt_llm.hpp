// TensorRT-LLM: proxy-tuning as a batched logits post-processor of the executor.
//
//     proxytune_hooks::TensorRtLlm hook(processor, [](auto const& stream) { cudaStreamSynchronize(stream->get()); });
//     LogitsPostProcessorConfig config;
//     config.setProcessorBatched(std::ref(hook));
//     ... request.setLogitsPostProcessorName(Request::kBatchedPostProcessorName) ...
//     ... hook.Finish(id) with each response that is final ...

#ifndef PROXYTUNE_HOOKS_TENSORRT_LLM_HPP
#define PROXYTUNE_HOOKS_TENSORRT_LLM_HPP

#include <functional>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <unordered_set>
#include <utility>
#include <vector>

#include <tensorrt_llm/executor/tensor.h>
#include <tensorrt_llm/executor/types.h>

#include <proxytune/logits_processor.hpp>

namespace proxytune_hooks {

namespace tle = tensorrt_llm::executor;

class TensorRtLlm {
 public:
  // `synchronize` waits until a stream has done all that was asked of it; needed for logits on the device.
  TensorRtLlm(proxytune::LogitsProcessor& processor, std::function<void(tle::StreamPtr const&)> synchronize)
      : processor_(processor), synchronize_(std::move(synchronize)) {}

  // As tle::LogitsPostProcessorBatched. A request is added when it is first seen, unless the program has added it with
  // prompts or an alpha of its own, under its client id or else its id.
  void operator()(std::vector<tle::IdType> const& ids, std::vector<tle::Tensor>& logits,
                  std::vector<std::reference_wrapper<tle::BeamTokens const>> const& tokens,
                  tle::StreamPtr const& stream, std::vector<std::optional<tle::IdType>> const& client_ids) {
    rows_.clear();
    on_host_.clear();
    for (std::size_t i = 0; i < ids.size(); ++i) {
      Meet(client_ids[i].value_or(ids[i]));
      AddRows(client_ids[i].value_or(ids[i]), OnHost(logits[i], stream), tokens[i]);
    }
    if (!on_host_.empty()) {
      synchronize_(stream);
    }
    // Not to throw through the executor's loop: rows that were refused go on as they are.
    last_ = processor_.TryApply(rows_);
    for (auto& [tensor, copy] : on_host_) {
      tensor->setFrom(copy, stream);
    }
    if (!on_host_.empty()) {
      synchronize_(stream);  // the copies live no longer
    }
  }

  // The request has ended.
  void Finish(tle::IdType id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (known_.erase(id) != 0) {
      (void)processor_.TryRemoveRequest(id);
    }
  }

  proxytune::Status const& last() const { return last_; }

 private:
  void Meet(tle::IdType id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (known_.insert(id).second) {
      (void)processor_.TryAddRequest(id);  // an error where the program has added it: just as well
    }
  }

  tle::Tensor& OnHost(tle::Tensor& tensor, tle::StreamPtr const& stream) {
    if (tensor.getMemoryType() != tle::MemoryType::kGPU) {
      return tensor;
    }
    on_host_.emplace_back(&tensor, tensor.copyToPinned(stream));
    return on_host_.back().second;
  }

  void AddRows(tle::IdType id, tle::Tensor& logits, tle::BeamTokens const& beams) {
    const std::size_t size = logits.getSize() / beams.size();
    const bool wide = logits.getDataType() == tle::DataType::kFP32;
    const bool brain = logits.getDataType() == tle::DataType::kBF16;
    for (std::size_t beam = 0; beam < beams.size(); ++beam) {
      proxytune::Row row;
      row.request_id = id;
      row.history = beams[beam].data();
      row.history_size = beams[beam].size();
      row.logits = static_cast<char*>(logits.getData()) + beam * size * (wide ? 4 : 2);
      row.logits_size = size;
      row.dtype = wide ? proxytune::DType::kFloat32 : brain ? proxytune::DType::kBFloat16 : proxytune::DType::kFloat16;
      rows_.push_back(row);
    }
  }

  proxytune::LogitsProcessor& processor_;
  std::function<void(tle::StreamPtr const&)> synchronize_;
  std::mutex mutex_;
  std::unordered_set<tle::IdType> known_;
  std::vector<proxytune::Row> rows_;
  std::vector<std::pair<tle::Tensor*, tle::Tensor>> on_host_;
  proxytune::Status last_;
};

}  // namespace proxytune_hooks

#endif  // PROXYTUNE_HOOKS_TENSORRT_LLM_HPP
