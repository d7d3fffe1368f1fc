// quire_launches [attention|gemms|layers|moe|sampling ...]; default: all of them.
#include <exception>
#include <map>

#include "launches.h"

int main(int argc, char** argv) {
  using namespace quire::launches;
  const std::map<std::string, void (*)()> groups{
      {"attention", attention}, {"gemms", gemms}, {"layers", layers}, {"moe", moe}, {"sampling", sampling}};
  try {
    for (int i = 1; i < argc; ++i) {
      if (!groups.contains(argv[i])) {
        std::fprintf(stderr, "got %s; allowed: attention, gemms, layers, moe, sampling\n", argv[i]);
        return 2;
      }
    }
    for (const auto& [name, run] : groups) {
      bool is_asked = argc == 1;
      for (int i = 1; i < argc; ++i) is_asked |= name == argv[i];
      if (is_asked) run();
    }
    require(cudaDeviceSynchronize());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
