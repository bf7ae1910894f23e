// onnxruntime-genai: proxy-tuning between a generator's logits and its choice of a token.
//
//     processor.AddRequest(id);                                       // for each sequence of the batch
//     generator->AppendTokenSequences(*sequences);
//     while (!generator->IsDone()) {
//       proxytune_hooks::ShiftLogits(*generator, processor, ids);
//       generator->GenerateNextToken();
//     }
//     processor.RemoveRequest(id);

#ifndef PROXYTUNE_HOOKS_ONNXRUNTIME_GENAI_HPP
#define PROXYTUNE_HOOKS_ONNXRUNTIME_GENAI_HPP

#include <cstdint>
#include <memory>
#include <vector>

#include <ort_genai.h>

#include <proxytune/logits_processor.hpp>

namespace proxytune_hooks {

// Shifts the logits for the next token of each sequence; ids[i] is the request of sequence i.
inline void ShiftLogits(OgaGenerator& generator, proxytune::LogitsProcessor& processor,
                        const std::vector<proxytune::RequestId>& ids) {
  const std::unique_ptr<OgaTensor> logits = generator.GetLogits();  // a copy, in float: batch, positions, vocabulary
  const std::vector<std::int64_t> shape = logits->Shape();
  std::size_t values = 1;
  for (const std::int64_t length : shape) {
    values *= static_cast<std::size_t>(length);
  }
  const auto size = static_cast<std::size_t>(shape.back());
  const std::size_t each = values / ids.size();
  std::vector<proxytune::Row> rows(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    rows[i].request_id = ids[i];
    rows[i].history = generator.GetSequenceData(i);
    rows[i].history_size = generator.GetSequenceCount(i);
    rows[i].logits = static_cast<float*>(logits->Data()) + (i + 1) * each - size;  // the last position
    rows[i].logits_size = size;
  }
  processor.Apply(rows);
  generator.SetLogits(*logits);
}

// Goes back to the first `length` tokens of a generator of one sequence.
inline void RewindTo(OgaGenerator& generator, proxytune::LogitsProcessor& processor, proxytune::RequestId id,
                     std::size_t length) {
  const std::size_t before = generator.GetSequenceCount(0);
  generator.RewindTo(length);
  // The token chosen last may not have been read yet, and so needs no taking back: that is no error worth the name.
  (void)processor.TryRollback(id, before - length);
}

}  // namespace proxytune_hooks

#endif  // PROXYTUNE_HOOKS_ONNXRUNTIME_GENAI_HPP
