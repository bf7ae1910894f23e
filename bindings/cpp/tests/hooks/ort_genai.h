// Stand-in for onnxruntime-genai's header of this name: just what examples/hooks uses, over a model without weights.

#ifndef STAND_IN_ORT_GENAI_H
#define STAND_IN_ORT_GENAI_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

struct OgaTensor {
  std::vector<std::int64_t> shape;
  std::vector<float> data;

  std::vector<std::int64_t> Shape() { return shape; }
  void* Data() { return data.data(); }
};

struct OgaGenerator {
  std::vector<std::vector<std::int32_t>> sequences;
  OgaTensor logits;

  std::size_t GetSequenceCount(std::size_t index) const { return sequences[index].size(); }
  const std::int32_t* GetSequenceData(std::size_t index) const { return sequences[index].data(); }
  std::unique_ptr<OgaTensor> GetLogits() { return std::make_unique<OgaTensor>(logits); }
  void SetLogits(OgaTensor& tensor) { logits = tensor; }
  void RewindTo(std::size_t length) { sequences[0].resize(length); }
  void GenerateNextToken() {
    const auto size = static_cast<std::ptrdiff_t>(logits.shape.back());
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const auto end = logits.data.begin() + static_cast<std::ptrdiff_t>((i + 1) * logits.data.size() / sequences.size());
      sequences[i].push_back(static_cast<std::int32_t>(std::max_element(end - size, end) - (end - size)));
    }
  }
};

#endif  // STAND_IN_ORT_GENAI_H
