#include "engine.hpp"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <utility>

Engine::Engine(const EngineOptions& options, proxytune::LogitsProcessor* processor)
    : processor_(processor), options_(options), batch_(options.batch) {
  model_.reset(llama_model_load_from_file(options.model.c_str(), llama_model_default_params()));
  if (model_ == nullptr) {
    throw std::runtime_error(options.model + ": cannot be loaded");
  }
  const int threads = options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  llama_context_params params = llama_context_default_params();
  params.n_ctx = options.context * options.sequences;
  params.n_seq_max = options.sequences;
  params.n_batch = params.n_ubatch = options.batch;
  params.n_threads = params.n_threads_batch = threads;
  params.kv_unified = false;
  if (options.f32_cache) {
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  }
  context_.reset(llama_init_from_model(model_.get(), params));
  if (context_ == nullptr) {
    throw std::runtime_error(options.model + ": no context of this size");
  }
  for (int sequence = options.sequences; sequence-- > 0;) {
    free_.push_back(sequence);
  }
}

std::vector<llama_token> Engine::Tokenize(const std::string& text) const {
  std::vector<llama_token> tokens(text.size() + 8);
  const int count = llama_tokenize(vocab(), text.data(), static_cast<int>(text.size()), tokens.data(),
                                   static_cast<int>(tokens.size()), true, true);
  tokens.resize(std::max(count, 0));
  return tokens;
}

std::string Engine::Text(const std::vector<llama_token>& tokens) const {
  std::string text;
  char piece[256];
  for (const llama_token token : tokens) {
    text.append(piece, std::max(llama_token_to_piece(vocab(), token, piece, sizeof(piece), 0, true), 0));
  }
  return text;
}

void Engine::Submit(Request request) { waiting_.push_back(std::move(request)); }

bool Engine::Step() {
  Admit();
  if (active_.empty()) {
    return false;
  }
  FillBatch();
  // -> What will be wanted is known: where the proxies have a device of their own, they work while the host does.
  if (processor_ != nullptr) {
    processor_->Prefetch(rows_);
  }
  if (llama_decode(context_.get(), batch_.value) != 0) {
    throw std::runtime_error("the host's forward pass failed");
  }
  Shift();
  Choose();
  Retire();
  return true;
}

std::vector<Finished> Engine::TakeFinished() { return std::exchange(finished_, {}); }

void Engine::Admit() {
  while (!waiting_.empty() && !free_.empty()) {
    Request request = std::move(waiting_.front());
    waiting_.pop_front();
    if (request.prompt.empty() || request.prompt.size() >= static_cast<std::size_t>(options_.context)) {
      finished_.push_back({request.id, {}, "a prompt that is empty or does not fit the context"});
      continue;
    }
    // -> A request comes in. One with an alpha that is not a number, or an id in use, ends here and harms nobody.
    if (processor_ != nullptr) {
      const proxytune::Status status = processor_->TryAddRequest(request.id, request.prompts, request.alpha);
      if (!status.ok()) {
        finished_.push_back({request.id, {}, status.message});
        continue;
      }
    }
    Active active;
    active.history = request.prompt;
    active.sequence = free_.back();
    active.request = std::move(request);
    free_.pop_back();
    active_.push_back(std::move(active));
  }
}

// Those that decode first, one token each; what room is left goes to prompts.
void Engine::FillBatch() {
  std::stable_partition(active_.begin(), active_.end(),
                        [](const Active& a) { return a.history.size() - a.read == 1; });
  llama_batch& batch = batch_.value;
  batch.n_tokens = 0;
  rows_.clear();
  for (Active& active : active_) {
    active.output = -1;
    while (active.read < active.history.size() && batch.n_tokens < options_.batch) {
      const int i = batch.n_tokens++;
      batch.token[i] = active.history[active.read];
      batch.pos[i] = static_cast<llama_pos>(active.read);
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = active.sequence;
      batch.logits[i] = ++active.read == active.history.size();
      active.output = batch.logits[i] ? i : -1;
    }
    if (active.output >= 0) {
      proxytune::Row row;
      row.request_id = active.request.id;
      row.history = active.history.data();
      row.history_size = active.history.size();
      rows_.push_back(row);
    }
  }
}

void Engine::Shift() {
  auto row = rows_.begin();
  for (const Active& active : active_) {
    if (active.output >= 0) {
      row->logits = llama_get_logits_ith(context_.get(), active.output);
      row->logits_size = static_cast<std::size_t>(llama_vocab_n_tokens(vocab()));
      ++row;
    }
  }
  // -> Before any sampler sees them: one pass of each proxy for all rows.
  if (processor_ != nullptr) {
    processor_->Apply(rows_);
  }
}

// Greedy; an engine's samplers would work on the shifted logits here.
void Engine::Choose() {
  auto row = rows_.begin();
  for (Active& active : active_) {
    if (active.output < 0) {
      continue;
    }
    if (row->status == proxytune::RowStatus::kStop) {
      active.over = true;
      active.error = processor_->FailureOf(active.request.id);
    } else {
      const auto* logits = static_cast<const float*>(row->logits);
      Append(active, static_cast<llama_token>(std::max_element(logits, logits + row->logits_size) - logits));
    }
    ++row;
  }
}

void Engine::Append(Active& active, llama_token token) const {
  if (!active.request.ignore_end && llama_vocab_is_eog(vocab(), token)) {
    active.over = true;
    return;
  }
  active.history.push_back(token);
  active.over = active.history.size() - active.request.prompt.size() >= active.request.max_tokens ||
                active.history.size() > static_cast<std::size_t>(options_.context);
}

// The last ones take the places of those that are over.
void Engine::Retire() {
  for (std::size_t i = 0; i < active_.size();) {
    Active& active = active_[i];
    if (!active.over) {
      ++i;
      continue;
    }
    // -> It is over.
    if (processor_ != nullptr) {
      processor_->RemoveRequest(active.request.id);
    }
    llama_memory_seq_rm(llama_get_memory(context_.get()), active.sequence, -1, -1);
    free_.push_back(active.sequence);
    const auto prompt = static_cast<std::ptrdiff_t>(active.request.prompt.size());
    finished_.push_back({active.request.id, {active.history.begin() + prompt, active.history.end()}, active.error});
    std::swap(active, active_.back());
    active_.pop_back();
  }
}
