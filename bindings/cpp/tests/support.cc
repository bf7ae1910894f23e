#include "support.hpp"

#include <nlohmann/json.hpp>

namespace support {

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> read;
    const auto golden = nlohmann::json::parse(std::ifstream(Path("tests/golden/golden.json")));
    for (const auto& c : golden["cases"]) {
      read.push_back({c["name"], c["prompt"], c["alpha"], c["prompt_tokens"], c["tuned_prompt_tokens"], c["tokens"],
                      c["host_tokens"], c["positions"]});
    }
    return read;
  }();
  return cases;
}

std::vector<std::vector<float>> GoldenRows(const std::string& name) {
  std::ifstream file(Path("tests/golden/golden.safetensors"), std::ios::binary);
  std::uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof(length));
  std::string header(length, ' ');
  file.read(header.data(), static_cast<std::streamsize>(length));
  const auto entry = nlohmann::json::parse(header)[name];
  const std::size_t width = entry["shape"][1];
  std::vector<std::vector<float>> rows(entry["shape"][0], std::vector<float>(width));
  file.seekg(static_cast<std::streamoff>(sizeof(length) + length + entry["data_offsets"][0].get<std::size_t>()));
  for (auto& row : rows) {
    file.read(reinterpret_cast<char*>(row.data()), static_cast<std::streamsize>(width * sizeof(float)));
  }
  return rows;
}

}  // namespace support
