// What config.pbtxt says about one model of this backend, checked at load.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <regex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "json.h"

namespace quire::triton {

// kUnary: generation and detokenizer in one, for models that are not decoupled; uses the engine of a
// generation model. With a tokenizer model it takes what that one takes, and has it tokenize first.
enum class Role : uint8_t { kGeneration, kDetokenizer, kUnary, kTokenizer };

// Whose clients a model answers: Triton's vLLM backend's, or TensorRT-LLM's, which give some outputs other
// names, and all tensors a batch dimension.
enum class Dialect : uint8_t { kVllm, kTrtllm };

// What decides which outputs a model has.
struct Sender {
  Role role = Role::kGeneration;
  Dialect dialect = Dialect::kVllm;
};

struct ModelSettings {
  std::string name;
  uint64_t version = 0;
  std::filesystem::path folder;  // of the model; its parent is the model repository
  Role role = Role::kGeneration;
  Dialect dialect = Dialect::kVllm;  // roles detokenizer and unary; a tokenizer's is the worker's business
  std::string python;                // roles generation and tokenizer: interpreter that runs their processes
  std::string served_model_name;     // the same roles: what clients call, which /metrics says; not empty
  bool reports_metrics = true;       // the same roles: the model has series on /metrics
  // role generation
  std::string engine_module;                    // module that is the engine
  std::filesystem::path engine_config;          // <model folder>/<version>/model.json
  std::string engine_settings;                  // its content now, which holds until the next load
  std::optional<std::regex> forwarded_headers;  // request parameters that are HTTP headers, gRPC metadata
  // role detokenizer: whose token table decodes plain output_ids; role unary: whose engine answers
  std::string generation_model;
  std::string tokenizer_model;  // role unary; empty: requests bring ids
  // role tokenizer
  std::string tokenizer_module;                                           // module that tokenizes
  std::vector<std::pair<std::string, std::string>> tokenizer_parameters;  // what it reads of config.pbtxt
  double tokenize_timeout_s = 0;

  Sender sender() const { return {role, dialect}; }
};

// A tensor that a role knows. Which inputs a tokenizer has depends on its dialect.
struct TensorSpec {
  const char* name;
  TRITONSERVER_DataType type;
};
std::span<const TensorSpec> generation_inputs(Role role);  // kGeneration or kUnary
std::span<const TensorSpec> detokenizer_inputs();

// The content of a model.json. Throws Error that names the file.
std::string read_settings_file(const std::filesystem::path& path);

// Throws InvalidArgument that names the setting of config.pbtxt; role generation: also what
// read_settings_file() throws.
ModelSettings read_model_settings(TRITONBACKEND_Model* model);
// The part of it that reads the configuration itself; needs no server, so `quire check` runs it too.
void read_model_config(const Json& config, ModelSettings& settings);

}  // namespace quire::triton
