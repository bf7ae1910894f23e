// The public class over the bridge that cxx generates: every call becomes a status, and a status an exception.

#include "proxytune/logits_processor.hpp"

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "proxytune-cpp/src/lib.rs.h"

namespace proxytune {
namespace {

// The bridge hands rows over as they are: src/row.rs has the same layout.
static_assert(std::is_trivially_copyable_v<Row> && std::is_standard_layout_v<Row>);
static_assert(sizeof(std::size_t) == 8 && sizeof(Row) == 48 && alignof(Row) == 8);
static_assert(offsetof(Row, request_id) == 0 && offsetof(Row, history) == 8 && offsetof(Row, history_size) == 16);
static_assert(offsetof(Row, logits) == 24 && offsetof(Row, logits_size) == 32);
static_assert(offsetof(Row, dtype) == 40 && offsetof(Row, status) == 41);

// Runs `call`, which returns an ffi::Status; whatever it throws becomes a status too.
template <class Call>
Status Guarded(Call&& call) noexcept {
  // Without a message: short of memory there may be none.
  Status failed{StatusCode::kOutOfMemory, {}};
  try {
    const ffi::Status status = call();
    failed.code = static_cast<StatusCode>(status.code);
    if (!failed.ok()) {
      failed.message.assign(status.message.data(), status.message.size());
    }
  } catch (const std::bad_alloc&) {
  } catch (...) {
    failed.code = StatusCode::kInternal;
  }
  return failed;
}

void ThrowUnlessOk(const Status& status) {
  if (!status.ok()) {
    throw Error(status);
  }
}

ffi::Status Refusal(const char* message) { return {static_cast<std::uint8_t>(StatusCode::kInvalidArgument), message}; }

// As Guarded, for calls to a processor that may have been moved from.
template <class Call>
Status With(const ffi::Processor* processor, Call&& call) noexcept {
  return Guarded([&] {
    return processor != nullptr ? call(*processor)
                                : Refusal("processor: got one that was moved from, expected one that is open");
  });
}

// As With, for calls over rows.
template <class Rows, class Call>
Status WithRows(const ffi::Processor* processor, Rows* rows, std::size_t count, Call&& call) noexcept {
  return With(processor, [&](const ffi::Processor& open) {
    if (rows == nullptr && count != 0) {
      return Refusal("rows: got null, expected as many rows as count says");
    }
    return call(open, rust::Slice<Rows>(rows, count));
  });
}

rust::Slice<const std::uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

rust::Slice<const TokenId> Tokens(const std::vector<TokenId>& tokens) { return {tokens.data(), tokens.size()}; }

ffi::Status Open(const ffi::Processor& processor, const Options& options) {
  return processor.open({
      Bytes(options.config),
      Bytes(options.tuned),
      Bytes(options.tuned_lora),
      Bytes(options.untuned),
      Bytes(options.host),
      options.vocabulary_size,
      options.context,
      options.sequences,
      options.threads,
      options.alpha.has_value(),
      options.alpha.value_or(0),
      options.on_error.has_value() ? static_cast<std::uint8_t>(*options.on_error) : std::uint8_t{0},
  });
}

void Close(ffi::Processor* processor) noexcept {
  if (processor != nullptr) {
    rust::Box<ffi::Processor>::from_raw(processor);
  }
}

// An open processor, owned by the caller; null where `status` says why.
ffi::Processor* Load(const Options& options, Status& status) noexcept {
  ffi::Processor* processor = nullptr;
  status = Guarded([&] {
    processor = ffi::new_processor().into_raw();
    return Open(*processor, options);
  });
  if (!status.ok()) {
    Close(std::exchange(processor, nullptr));
  }
  return processor;
}

}  // namespace

Error::Error(const Status& status) : std::runtime_error(status.message), code_(status.code) {}

Error::~Error() = default;

LogitsProcessor::LogitsProcessor(ffi::Processor* processor) noexcept : processor_(processor) {}

LogitsProcessor::LogitsProcessor(const Options& options) {
  Status status;
  processor_ = Load(options, status);
  ThrowUnlessOk(status);
}

std::unique_ptr<LogitsProcessor> LogitsProcessor::Create(const Options& options, Status* status) noexcept {
  Status result;
  std::unique_ptr<LogitsProcessor> created;
  if (ffi::Processor* processor = Load(options, result)) {
    created.reset(new (std::nothrow) LogitsProcessor(processor));
    if (created == nullptr) {
      Close(processor);
      result.code = StatusCode::kOutOfMemory;
    }
  }
  if (status != nullptr) {
    *status = std::move(result);
  }
  return created;
}

LogitsProcessor::~LogitsProcessor() { Close(processor_); }

LogitsProcessor::LogitsProcessor(LogitsProcessor&& other) noexcept
    : processor_(std::exchange(other.processor_, nullptr)) {}

LogitsProcessor& LogitsProcessor::operator=(LogitsProcessor&& other) noexcept {
  if (this != &other) {
    Close(std::exchange(processor_, std::exchange(other.processor_, nullptr)));
  }
  return *this;
}

std::size_t LogitsProcessor::vocabulary_size() const noexcept {
  return processor_ != nullptr ? processor_->vocabulary_size() : 0;
}

std::size_t LogitsProcessor::context_size() const noexcept {
  return processor_ != nullptr ? processor_->context_size() : 0;
}

Stats LogitsProcessor::stats() const noexcept {
  if (processor_ == nullptr) {
    return {};
  }
  const ffi::Counters counters = processor_->counters();
  return {counters.requests, counters.shifted,  counters.failed,    counters.ignored,
          counters.rounds,   counters.tuned_us, counters.untuned_us};
}

Status LogitsProcessor::TryAddRequest(RequestId id, const Prompts& prompts, std::optional<float> alpha) noexcept {
  return With(processor_, [&](const ffi::Processor& open) {
    return open.add(id, {Tokens(prompts.host), Tokens(prompts.tuned), Bytes(prompts.tuned_text), alpha.has_value(),
                         alpha.value_or(0)});
  });
}

Status LogitsProcessor::TryRemoveRequest(RequestId id) noexcept {
  return With(processor_, [&](const ffi::Processor& open) { return open.remove(id); });
}

Status LogitsProcessor::TryPrefetch(const Row* rows, std::size_t count) noexcept {
  return WithRows(processor_, rows, count, [](const ffi::Processor& open, auto slice) { return open.prefetch(slice); });
}

Status LogitsProcessor::TryApply(Row* rows, std::size_t count) noexcept {
  return WithRows(processor_, rows, count, [](const ffi::Processor& open, auto slice) { return open.apply(slice); });
}

Status LogitsProcessor::TryComputeOffsets(Row* rows, std::size_t count, float* out, std::size_t stride) noexcept {
  return WithRows(processor_, rows, count, [&](const ffi::Processor& open, auto slice) {
    return open.compute_offsets(slice, out, stride);
  });
}

Status LogitsProcessor::TryRollback(RequestId id, std::size_t count) noexcept {
  return With(processor_, [&](const ffi::Processor& open) { return open.rollback(id, count); });
}

void LogitsProcessor::AddRequest(RequestId id, const Prompts& prompts, std::optional<float> alpha) {
  ThrowUnlessOk(TryAddRequest(id, prompts, alpha));
}

void LogitsProcessor::RemoveRequest(RequestId id) { ThrowUnlessOk(TryRemoveRequest(id)); }

void LogitsProcessor::Prefetch(const Row* rows, std::size_t count) { ThrowUnlessOk(TryPrefetch(rows, count)); }

void LogitsProcessor::Apply(Row* rows, std::size_t count) { ThrowUnlessOk(TryApply(rows, count)); }

void LogitsProcessor::ComputeOffsets(Row* rows, std::size_t count, float* out, std::size_t stride) {
  ThrowUnlessOk(TryComputeOffsets(rows, count, out, stride));
}

void LogitsProcessor::Rollback(RequestId id, std::size_t count) { ThrowUnlessOk(TryRollback(id, count)); }

std::string LogitsProcessor::FailureOf(RequestId id) const {
  rust::String message;
  ThrowUnlessOk(With(processor_, [&](const ffi::Processor& open) { return open.failure(id, message); }));
  return std::string(message);
}

}  // namespace proxytune
