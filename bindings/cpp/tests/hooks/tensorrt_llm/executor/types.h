// Stand-in for TensorRT-LLM's header of this name: just the declarations that examples/hooks uses, for tests without a GPU.

#ifndef STAND_IN_TENSORRT_LLM_TYPES_H
#define STAND_IN_TENSORRT_LLM_TYPES_H

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace tensorrt_llm::runtime {
class CudaStream {
 public:
  int synchronized = 0;
};
}  // namespace tensorrt_llm::runtime

namespace tensorrt_llm::executor {

class Tensor;
using TokenIdType = std::int32_t;
using VecTokens = std::vector<TokenIdType>;
using BeamTokens = std::vector<VecTokens>;
using IdType = std::uint64_t;
using StreamPtr = std::shared_ptr<runtime::CudaStream>;
using LogitsPostProcessorBatched =
    std::function<void(std::vector<IdType> const&, std::vector<Tensor>&,
                       std::vector<std::reference_wrapper<BeamTokens const>> const&, StreamPtr const&,
                       std::vector<std::optional<IdType>> const&)>;

enum class DataType { kBOOL, kUINT8, kINT8, kINT32, kINT64, kBF16, kFP8, kFP16, kFP32, kUNKNOWN };
enum class MemoryType { kCPU, kCPU_PINNED, kCPU_PINNEDPOOL, kGPU, kUVM, kUNKNOWN };

}  // namespace tensorrt_llm::executor

#endif  // STAND_IN_TENSORRT_LLM_TYPES_H
