// The loaded generation models of this process, so that detokenizers and models of role unary find
// them; and its tokenizers, for the server's readiness. This is what makes one backend with several roles out
// of several models. Thread safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace quire::triton {

class Generation;
struct TokenizerModel;

namespace registry {

// As long as they live; a generation is no longer found once it is being unloaded (Generation::stop()).
void add(const std::shared_ptr<Generation>& generation);
void add(const std::shared_ptr<TokenizerModel>& tokenizer);

// Generation::give_up() of all that are still there, of those too that are being unloaded.
void give_up_all();
// Whether it was called: the server exits, and waits for no one any more.
bool is_given_up();

// In the order of loading.
std::vector<std::shared_ptr<Generation>> loaded();
std::vector<std::shared_ptr<TokenizerModel>> loaded_tokenizers();

// By Generation::id; null when it is no longer loaded.
std::shared_ptr<Generation> find(uint64_t id);
// By model name, for a model in the folder `user`: of its own repository, else of any other. The highest
// version, as Triton picks it; of two loads of one version the last. Throws ServerError when none is loaded,
// or when several repositories other than the user's have one.
std::shared_ptr<Generation> find(const std::string& name, const std::filesystem::path& user);

}  // namespace registry
}  // namespace quire::triton
