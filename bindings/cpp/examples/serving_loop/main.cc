// serving_loop HOST.gguf PROXYTUNE.toml PROMPT...: continues prompts that come in one after the other, proxy-tuned.

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "engine.hpp"

namespace {

constexpr int kStepsBetween = 3;

int Serve(const std::string& host, const std::string& config, const std::vector<std::string>& prompts) {
  proxytune::Options options;
  options.config = config;
  options.host = host;
  EngineOptions engine_options;
  engine_options.model = host;
  options.context = static_cast<std::size_t>(engine_options.context);
  options.sequences = static_cast<std::size_t>(engine_options.sequences);

  proxytune::LogitsProcessor processor(options);
  Engine engine(engine_options, &processor);
  std::size_t next = 0;
  bool busy = true;
  for (int step = 0; busy || next < prompts.size(); ++step) {
    if (step % kStepsBetween == 0 && next < prompts.size()) {
      Request request;
      request.id = next;
      request.prompt = engine.Tokenize(prompts[next++]);
      engine.Submit(std::move(request));
    }
    busy = engine.Step();
    for (const Finished& finished : engine.TakeFinished()) {
      std::printf("[%d] %s%s%s\n", static_cast<int>(finished.id), prompts[finished.id].c_str(),
                  engine.Text(finished.tokens).c_str(), finished.error.c_str());
    }
  }
  const proxytune::Stats stats = processor.stats();
  std::fprintf(stderr, "%llu rows shifted in %llu rounds, %llu not\n", static_cast<unsigned long long>(stats.shifted),
               static_cast<unsigned long long>(stats.rounds), static_cast<unsigned long long>(stats.failed));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: serving_loop HOST.gguf PROXYTUNE.toml PROMPT...\n");
    return 2;
  }
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  try {
    return Serve(argv[1], argv[2], {argv + 3, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
