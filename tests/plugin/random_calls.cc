// The C interface under calls in any order, right and wrong ones, from several threads at once, each held against a fresh sampler
// that is told the same: random_calls CONFIG ABSENT BROKEN CALLS. Built with AddressSanitizer by test_plugin.py.

#include <llama.h>
#include <proxytune/llama.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kVocab = 4096;
// Of two ways to compute a logit.
constexpr float kRounding = 2e-3f;
// A proxy's context, from the configuration.
constexpr std::size_t kContext = 48;

void Check(bool good, const char * what, unsigned seed) {
    if (!good) {
        fprintf(stderr, "%s; seed %u\n", what, seed);
        abort();
    }
}

// A chain that ours is the head of, and what it was told.
struct Chain {
    llama_sampler * chain;
    std::vector<llama_token> history;
    llama_sampler * ours() const { return llama_sampler_chain_get(chain, 0); }
};

class Caller {
  public:
    Caller(unsigned seed, char ** files) : seed_(seed), random_(seed), files_(files) { New(); }
    ~Caller() {
        for (const Chain & chain : chains_) {
            llama_sampler_free(chain.chain);
        }
    }

    void Call() {
        switch (Below(16)) {
            case 0: return New();
            case 1: return Free();
            case 2: return Clone();
            case 3: return Copy();
            case 4: return Reset();
            case 5: return Refused();
            case 6: case 7: case 8: return Apply();
            default: return Accept();
        }
    }

  private:
    std::size_t Below(std::size_t limit) { return random_() % limit; }
    Chain & Any() { return chains_[Below(chains_.size())]; }

    static llama_sampler * Sampler(char * path, unsigned seed) {
        llama_sampler * sampler = proxytune_sampler_init(path);
        Check(sampler != nullptr && *proxytune_last_error() == '\0', proxytune_last_error(), seed);
        return sampler;
    }

    void New() {
        if (chains_.size() > 6) {
            return Free();
        }
        llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
        llama_sampler_chain_add(chain, Sampler(files_[0], seed_));
        llama_sampler_chain_add(chain, llama_sampler_init_greedy());
        chains_.push_back({chain, {}});
    }

    void Free() {
        std::swap(Any(), chains_.back());
        llama_sampler_free(chains_.back().chain);
        chains_.pop_back();
        if (chains_.empty()) {
            New();
        }
    }

    void Clone() {
        if (chains_.size() <= 6) {
            const Chain from = Any();
            chains_.push_back({llama_sampler_clone(from.chain), from.history});
        }
    }

    void Copy() {
        Chain & from = Any(), & to = Any();
        llama_sampler_copy(from.ours(), to.ours());
        to.history = from.history;
    }

    void Reset() {
        Chain & chain = Any();
        llama_sampler_reset(chain.chain);
        chain.history.clear();
    }

    void Refused() {
        char * path = Below(3) == 0 ? nullptr : files_[1 + Below(2)];
        Check(proxytune_sampler_init(path) == nullptr, "a sampler of a file that is none", seed_);
        Check(strlen(proxytune_last_error()) > 20, "no reason", seed_);
    }

    void Accept() {
        Chain & chain = Any();
        if (Below(20) == 0) {
            // A place without a token.
            return llama_sampler_accept(chain.chain, -1);
        }
        for (std::size_t count = 1 + Below(8); count > 0; count--) {
            const auto token = static_cast<llama_token>(300 + Below(20));
            llama_sampler_accept(chain.chain, token);
            chain.history.push_back(token);
        }
    }

    std::vector<llama_token_data> Candidates() {
        std::vector<llama_token_data> all;
        for (llama_token id = 0; id < kVocab; id++) {
            all.push_back({id, id == 7 ? -INFINITY : static_cast<float>(id % 13), 0.0f});
        }
        if (Below(2) == 0) {
            // Some of them, in another order, and some that nobody knows.
            std::shuffle(all.begin(), all.end(), random_);
            all.resize(Below(50));
            for (const llama_token id : {-1, kVocab, INT32_MAX, INT32_MIN}) {
                if (Below(2) == 0) {
                    all.push_back({id, 1.0f, 0.0f});
                }
            }
        }
        return all;
    }

    static void ApplyTo(llama_sampler * sampler, std::vector<llama_token_data> & candidates) {
        llama_token_data_array array = {candidates.empty() ? nullptr : candidates.data(), candidates.size(), -1, true};
        llama_sampler_apply(sampler, &array);
    }

    void Apply() {
        const Chain & chain = Any();
        const std::vector<llama_token_data> before = Candidates();
        std::vector<llama_token_data> got = before, expected = before;
        ApplyTo(chain.ours(), got);
        llama_sampler * fresh = Sampler(files_[0], seed_);
        for (const llama_token token : chain.history) {
            llama_sampler_accept(fresh, token);
        }
        ApplyTo(fresh, expected);
        llama_sampler_free(fresh);
        const bool shifted = !chain.history.empty() && chain.history.size() <= kContext;
        float moved = 0;
        for (std::size_t i = 0; i < got.size(); i++) {
            const bool known = got[i].id >= 0 && got[i].id < kVocab;
            const float shift = std::isinf(before[i].logit) ? 0 : std::fabs(got[i].logit - before[i].logit);
            Check(got[i].id == before[i].id, "another token", seed_);
            Check(std::isinf(before[i].logit) ? got[i].logit == before[i].logit
                                              : std::fabs(got[i].logit - expected[i].logit) <= kRounding,
                  "another logit than a fresh sampler's", seed_);
            Check((shifted && known) || shift == 0, "a shift where there is none", seed_);
            moved = std::max(moved, shift);
        }
        Check(!shifted || got.size() < kVocab || moved > 0.1f, "no shift", seed_);
    }

    unsigned seed_;
    std::mt19937 random_;
    char ** files_;
    std::vector<Chain> chains_;
};

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 5 || proxytune_abi_version() != PROXYTUNE_ABI_VERSION) {
        return 2;
    }
    std::vector<std::thread> threads;
    for (unsigned seed = 1; seed <= 3; seed++) {
        threads.emplace_back([=] {
            Caller caller(seed, argv + 1);
            for (int i = 0; i < atoi(argv[4]); i++) {
                caller.Call();
            }
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    puts("fine");
}
