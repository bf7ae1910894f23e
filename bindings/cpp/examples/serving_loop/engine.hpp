// A serving loop over libllama, as small as one with continuous batching can be: requests come and go at any step, all
// that are active share each forward pass, prompts are read in pieces beside those that decode, and rows move as requests
// end. Where proxytune is called is marked with ->.

#ifndef SERVING_LOOP_ENGINE_HPP
#define SERVING_LOOP_ENGINE_HPP

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <llama.h>
#include <proxytune/logits_processor.hpp>

struct EngineOptions {
  std::string model;         // GGUF file
  int sequences = 4;         // requests that run at once; others wait
  int context = 512;         // tokens of each
  int batch = 64;            // tokens of one forward pass
  int threads = 0;           // 0: all cores
  bool f32_cache = false;    // for comparisons with other implementations
};

struct Request {
  std::uint64_t id = 0;
  std::vector<llama_token> prompt;
  std::size_t max_tokens = 64;
  bool ignore_end = false;
  proxytune::Prompts prompts;  // of the tuned proxy, where it is another one
  std::optional<float> alpha;
};

struct Finished {
  std::uint64_t id = 0;
  std::vector<llama_token> tokens;
  std::string error;  // why it ended early; empty if it did not
};

class Engine {
 public:
  // `processor` is not owned and outlives the engine; null: the host alone.
  Engine(const EngineOptions& options, proxytune::LogitsProcessor* processor);

  const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
  std::vector<llama_token> Tokenize(const std::string& text) const;
  std::string Text(const std::vector<llama_token>& tokens) const;

  // Queues a request.
  void Submit(Request request);
  // One forward pass over all active requests, and a token for each that has read its prompt. False if there are none.
  bool Step();
  // Requests that have ended since the last call.
  std::vector<Finished> TakeFinished();

 private:
  struct Active {
    Request request;
    std::vector<llama_token> history;  // prompt and what was generated
    std::size_t read = 0;              // of it, in the host's cache
    llama_seq_id sequence = 0;
    int output = -1;                   // place in this pass that has logits, where one does
    bool over = false;
    std::string error;
  };

  struct Batch {
    explicit Batch(int tokens) : value(llama_batch_init(tokens, 0, 1)) {}
    ~Batch() { llama_batch_free(value); }
    Batch(const Batch&) = delete;
    llama_batch value;
  };

  void Admit();
  void FillBatch();
  void Shift();
  void Choose();
  void Append(Active& active, llama_token token) const;
  void Retire();

  template <class T, void (*Free)(T*)>
  struct Deleter {
    void operator()(T* t) const { Free(t); }
  };

  std::unique_ptr<llama_model, Deleter<llama_model, llama_model_free>> model_;
  std::unique_ptr<llama_context, Deleter<llama_context, llama_free>> context_;
  proxytune::LogitsProcessor* processor_;
  EngineOptions options_;
  Batch batch_;

  std::deque<Request> waiting_;
  std::vector<Active> active_;
  std::vector<llama_seq_id> free_;
  std::vector<proxytune::Row> rows_;
  std::vector<Finished> finished_;
};

#endif  // SERVING_LOOP_ENGINE_HPP
