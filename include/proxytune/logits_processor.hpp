// proxytune for engines in C++ that have a serving loop of their own: proxy-tuning, h + alpha * (tuned - untuned), on
// the logits of whole batches, before any sampler sees them.
//
//     proxytune::Options options;
//     options.config = "proxytune.toml";              // names both proxies
//     options.host = "host.gguf";                     // whose vocabulary the rows have; a tokenizer.json will do
//     proxytune::LogitsProcessor processor(options);
//
//     processor.AddRequest(7);                        // when a request comes in
//     loop {
//         processor.Prefetch(rows);                   // optional: before the host's forward pass
//         ... forward pass of the host, which fills the rows' logits ...
//         processor.Apply(rows);                      // before penalties, temperature, top-k
//         ... sample, append to the histories ...
//     }
//     processor.RemoveRequest(7);                     // when it is over
//
// A row is not a request: rows may stand elsewhere at every call, come and go, and a request may own several, such as
// the positions of a draft or several texts from one prompt. Each row carries its whole history. That is the truth: the
// proxies' caches are brought in line with it, so going back, preempting and resuming need no call.
//
// Threads: any thread may call any function, several at once; calls take turns, so one may wait as long as another's
// forward pass of the proxies. Constructing, moving and destroying are for one thread, while no other uses the object.
//
// Errors: a function that is given something wrong throws proxytune::Error before it has touched anything. Its twin
// Try... returns a Status instead, and never throws. The failure of a proxy is neither: it stays with its row, whose
// logits are then the host's own, see RowStatus. Nothing here ends the process.
//
// docs/hosts/cpp.md shows where the calls go in several engines.

#ifndef PROXYTUNE_LOGITS_PROCESSOR_HPP
#define PROXYTUNE_LOGITS_PROCESSOR_HPP

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__GNUC__)
#define PROXYTUNE_EXPORT __attribute__((visibility("default")))
#else
#define PROXYTUNE_EXPORT
#endif

namespace proxytune {

// A request's number, chosen by the engine.
using RequestId = std::uint64_t;

// A token's index in the host's vocabulary; in a prompt of the tuned proxy's, in that proxy's.
using TokenId = std::int32_t;

// How logits are stored.
enum class DType : std::uint8_t {
  kFloat32 = 0,   // float
  kFloat16 = 1,   // IEEE 754 half precision
  kBFloat16 = 2,  // the upper half of a float
};

// What has become of a row.
enum class RowStatus : std::uint8_t {
  kPending = 0,    // nothing yet
  kShifted = 1,    // the shift was added; with alpha 0 there was none to add
  kUnshifted = 2,  // the proxies failed; the request goes on with the host's own logits (on_error = "host")
  kStop = 3,       // the proxies failed; the engine is to end the request (on_error = "stop")
};

// One row of a batch: the logits for the token that follows a history. Nothing in it is owned or kept: pointers are
// used during the call alone.
struct Row {
  RequestId request_id = 0;
  const TokenId* history = nullptr;  // all tokens up to this row, prompt first; never null
  std::size_t history_size = 0;      // at least 1
  void* logits = nullptr;            // changed in place; aligned to its type; only Apply needs it
  std::size_t logits_size = 0;       // vocabulary_size() values
  DType dtype = DType::kFloat32;     // of logits
  RowStatus status = RowStatus::kPending;  // written by Apply and ComputeOffsets
};

// What happens to a request whose proxies fail.
enum class OnError : std::uint8_t {
  kHost = 1,  // it goes on unshifted
  kStop = 2,  // its rows say kStop
};

// What to load. Strings are paths, relative to the working directory; what is set here wins over the file.
struct Options {
  std::string config;   // TOML with a section [proxy_tuning], see README.md; empty: none
  std::string tuned;    // GGUF file of the tuned proxy
  std::string tuned_lora;  // in place of it, a GGUF file with a LoRA adapter over the untuned proxy
  std::string untuned;  // GGUF file of the untuned proxy
  // Where the host's vocabulary is read: a GGUF file, of which no weights are loaded, a tokenizer.json, or a folder with
  // one. Empty: [host] model of the file.
  std::string host;
  std::size_t vocabulary_size = 0;  // length of the host's rows, where that is padded; 0: the vocabulary's
  std::size_t context = 0;          // tokens that one of the host's sequences may have; 0: what the proxies can
  std::size_t sequences = 0;        // sequences that the host runs at once; 0: as configured
  std::size_t threads = 0;          // for the proxies, where not configured; 0: all cores
  std::optional<float> alpha;       // of requests that say nothing else; default: as configured, or 1
  std::optional<OnError> on_error;  // default: as configured, or kHost
};

// What the models read for a prompt, where they differ. Copied.
struct Prompts {
  // The prompt as host and untuned proxy read it. Needed only if the tuned proxy reads another one, and the first
  // history handed in is not just the prompt.
  std::vector<TokenId> host;
  // The prompt as the tuned proxy reads it, its chat template applied: in its own tokens, or as text in UTF-8, in which
  // control tokens are read as such. Both empty: as the host.
  std::vector<TokenId> tuned;
  std::string tuned_text;
};

// What was done so far. Counters only grow.
struct Stats {
  std::uint64_t requests = 0;    // at this moment
  std::uint64_t shifted = 0;     // rows, those with alpha 0 left out
  std::uint64_t failed = 0;      // rows that went unshifted because the proxies failed
  std::uint64_t ignored = 0;     // single logits left as they were: their shift was not a number
  std::uint64_t rounds = 0;      // at most one forward pass of each proxy, over all rows that waited
  std::uint64_t tuned_us = 0;    // time in the tuned proxy's engine, microseconds
  std::uint64_t untuned_us = 0;  // time in the untuned proxy's engine, microseconds
};

// Kinds of errors, where a program may want to tell them apart.
enum class StatusCode : std::uint8_t {
  kOk = 0,
  kInvalidArgument = 1,  // a value that cannot be used
  kFile = 2,             // a configuration or model that cannot be read
  kVocabulary = 3,       // proxies that do not fit the host
  kOutOfMemory = 4,
  kEngine = 5,    // the proxies' engine failed as a whole
  kInternal = 6,  // an error in this library; other calls still work
};

// What the functions Try... return.
struct [[nodiscard]] Status {
  StatusCode code = StatusCode::kOk;
  std::string message;  // what was given, what was expected, what to do; empty if all is well

  bool ok() const noexcept { return code == StatusCode::kOk; }
};

// The one type that is thrown.
class PROXYTUNE_EXPORT Error : public std::runtime_error {
 public:
  explicit Error(const Status& status);
  ~Error() override;

  StatusCode code() const noexcept { return code_; }

 private:
  StatusCode code_;
};

namespace ffi {
struct Processor;
}

// Both proxies, and what they have read of each request.
class PROXYTUNE_EXPORT LogitsProcessor {
 public:
  // Loads both proxies; takes as long as reading their files does. Throws Error.
  explicit LogitsProcessor(const Options& options);
  // As the constructor, without exceptions: null on failure, and then *status says why. `status` may be null.
  static std::unique_ptr<LogitsProcessor> Create(const Options& options, Status* status) noexcept;

  ~LogitsProcessor();
  // What was moved from can be assigned to and destroyed; all else is an error.
  LogitsProcessor(LogitsProcessor&& other) noexcept;
  LogitsProcessor& operator=(LogitsProcessor&& other) noexcept;
  LogitsProcessor(const LogitsProcessor&) = delete;
  LogitsProcessor& operator=(const LogitsProcessor&) = delete;

  // Length of a row of logits. 0 for what was moved from.
  std::size_t vocabulary_size() const noexcept;
  // Tokens that the proxies can read; a longer history is a failure of its rows. 0 for what was moved from.
  std::size_t context_size() const noexcept;
  // All zero for what was moved from.
  Stats stats() const noexcept;

  // Adds a request; runs no model and keeps a copy of the prompts. `alpha` is finite: 1 as in the paper, 0 for none,
  // negative turns the shift round. An id in use is an error.
  void AddRequest(RequestId id, const Prompts& prompts = {}, std::optional<float> alpha = std::nullopt);
  Status TryAddRequest(RequestId id, const Prompts& prompts = {}, std::optional<float> alpha = std::nullopt) noexcept;

  // Removes a request and frees what it holds. An unknown id is an error, here and in all that follows.
  void RemoveRequest(RequestId id);
  Status TryRemoveRequest(RequestId id) noexcept;

  // Says which rows will come; their logits are not touched and may be null. Where the proxies have a device or threads
  // of their own they start at once and work while the host does; elsewhere this only takes notes. Never needed. Nothing
  // of the rows is kept. `rows` may be null if `count` is 0.
  void Prefetch(const Row* rows, std::size_t count);
  Status TryPrefetch(const Row* rows, std::size_t count) noexcept;

  // Adds alpha * (tuned - untuned) to each row's logits, in place, or combines them as `combine` in the configuration
  // says, and sets its status. Waits for the proxies: one
  // forward pass of each for all rows that Prefetch has not started. Applied twice, it shifts twice. A logit of -inf
  // stays so; with alpha 0 every bit stays and no proxy runs. `rows` may be null if `count` is 0.
  void Apply(Row* rows, std::size_t count);
  Status TryApply(Row* rows, std::size_t count) noexcept;

  // As Apply, for logits on a device: writes alpha * (tuned - untuned) for row i to out[i * stride] and the
  // vocabulary_size() values from there, 0 where there is no shift. `out` belongs to the caller and has room for
  // (count - 1) * stride + vocabulary_size() values; stride is at least vocabulary_size(). Logits may be null.
  // kInvalidArgument, with no rows as well, where `combine` asks for what is more than an offset.
  void ComputeOffsets(Row* rows, std::size_t count, float* out, std::size_t stride);
  Status TryComputeOffsets(Row* rows, std::size_t count, float* out, std::size_t stride) noexcept;

  // Says that the last `count` tokens of a request's histories are taken back. The next histories say so as well; this
  // only forgets sooner what was prefetched. More tokens than were read are an error.
  void Rollback(RequestId id, std::size_t count);
  Status TryRollback(RequestId id, std::size_t count) noexcept;

  // Why the last row of this request that failed did so; empty where none has.
  // The caller's own copy; throws Error where there is no such request.
  std::string FailureOf(RequestId id) const;

  // The same for any container of rows that lie side by side: std::vector, std::array, std::span.
  template <class Rows>
  void Prefetch(const Rows& rows) {
    Prefetch(std::data(rows), std::size(rows));
  }
  template <class Rows>
  Status TryPrefetch(const Rows& rows) noexcept {
    return TryPrefetch(std::data(rows), std::size(rows));
  }
  template <class Rows>
  void Apply(Rows&& rows) {
    Apply(std::data(rows), std::size(rows));
  }
  template <class Rows>
  Status TryApply(Rows&& rows) noexcept {
    return TryApply(std::data(rows), std::size(rows));
  }
  template <class Rows>
  void ComputeOffsets(Rows&& rows, float* out, std::size_t stride) {
    ComputeOffsets(std::data(rows), std::size(rows), out, stride);
  }
  template <class Rows>
  Status TryComputeOffsets(Rows&& rows, float* out, std::size_t stride) noexcept {
    return TryComputeOffsets(std::data(rows), std::size(rows), out, stride);
  }

 private:
  explicit LogitsProcessor(ffi::Processor* processor) noexcept;

  ffi::Processor* processor_ = nullptr;
};

}  // namespace proxytune

#endif  // PROXYTUNE_LOGITS_PROCESSOR_HPP
