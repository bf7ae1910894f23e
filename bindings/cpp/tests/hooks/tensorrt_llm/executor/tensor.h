// Stand-in for TensorRT-LLM's header of this name, see types.h. What calls itself device memory is ordinary memory.

#ifndef STAND_IN_TENSORRT_LLM_TENSOR_H
#define STAND_IN_TENSORRT_LLM_TENSOR_H

#include <cstring>

#include <tensorrt_llm/executor/types.h>

namespace tensorrt_llm::executor {

class Tensor {
 public:
  using CudaStreamPtr = std::shared_ptr<runtime::CudaStream>;

  Tensor() = default;
  Tensor(DataType type, MemoryType memory, std::size_t size)
      : data_(std::make_shared<std::vector<float>>(size)), type_(type), memory_(memory), size_(size) {}

  [[nodiscard]] Tensor copyToPinned(CudaStreamPtr = nullptr) const {
    Tensor copy(type_, MemoryType::kCPU_PINNED, size_);
    *copy.data_ = *data_;
    return copy;
  }
  void setFrom(Tensor const& other, CudaStreamPtr = nullptr) { *data_ = *other.data_; }

  [[nodiscard]] void* getData() { return data_->data(); }
  [[nodiscard]] DataType getDataType() const { return type_; }
  [[nodiscard]] MemoryType getMemoryType() const { return memory_; }
  [[nodiscard]] std::size_t getSize() const { return size_; }

 private:
  std::shared_ptr<std::vector<float>> data_;
  DataType type_ = DataType::kUNKNOWN;
  MemoryType memory_ = MemoryType::kUNKNOWN;
  std::size_t size_ = 0;
};

}  // namespace tensorrt_llm::executor

#endif  // STAND_IN_TENSORRT_LLM_TENSOR_H
