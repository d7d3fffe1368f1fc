// The functions that Triton calls, and nothing else: from models and instances of the server to our objects.
#include <cstdlib>
#include <memory>

#include "api.h"
#include "detokenizer.h"
#include "exit_watch.h"
#include "generation.h"
#include "readiness.h"
#include "registry.h"
#include "server_guard.h"
#include "tokenizer.h"
#include "tokenizer_call.h"

#define QUIRE_EXPORT extern "C" __attribute__((visibility("default")))

namespace quire::triton {

namespace {

// State of a model; of `generation` and `tokenizer` there is the one of its role, if any.
struct LoadedModel {
  ModelSettings settings;
  TRITONSERVER_Server* server = nullptr;
  std::shared_ptr<Generation> generation;
  std::shared_ptr<TokenizerModel> tokenizer;
};

// State of an instance; of `detokenizer` and `tokenizer` there is the one of its role, if any.
struct LoadedInstance {
  LoadedModel* model;
  std::unique_ptr<Detokenizer> detokenizer;
  std::unique_ptr<Tokenizer> tokenizer;
};

LoadedModel* state_of(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  check(TRITONBACKEND_ModelState(model, &state));
  return static_cast<LoadedModel*>(state);
}

LoadedInstance* state_of(TRITONBACKEND_ModelInstance* instance) {
  void* state = nullptr;
  check(TRITONBACKEND_ModelInstanceState(instance, &state));
  return static_cast<LoadedInstance*>(state);
}

void check_api_version() {
  uint32_t major = 0;
  uint32_t minor = 0;
  check(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major == kApiMajor && minor >= kApiMinMinor) return;
  throw ServerError(TRITONSERVER_ERROR_UNSUPPORTED,
                    "backend quire: the server's backend API is version " + std::to_string(major) + "." +
                        std::to_string(minor) + "; needed: " + std::to_string(kApiMajor) + "." +
                        std::to_string(kApiMinMinor) + " or a later " + std::to_string(kApiMajor) + ".x");
}

// No exception may pass into the server.
template <class F>
TRITONSERVER_Error* guarded(F&& call) {
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    return to_triton(error);
  } catch (...) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL,
                                 "backend quire: an exception of an unknown kind");
  }
}

}  // namespace
}  // namespace quire::triton

using namespace quire::triton;

QUIRE_EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  return guarded([] {
    check_api_version();
    // Where its exit timeout is over, the server ends by exit() with requests open, and its gRPC front end
    // waits there for their answers.
    [[maybe_unused]] static const int registered = std::atexit(registry::give_up_all);
    server_guard::ask_readiness(is_serving);
    if (!server_guard::is_loaded()) {
      QUIRE_LOG(WARN,
                "libquire_guard.so is not preloaded: HTTP streams may lose events while the server is busy, "
                "and its "
                "readiness does not follow the engine (docs/guard.md); `quire serve` preloads it");
    }
  });
}

QUIRE_EXPORT TRITONSERVER_Error* TRITONBACKEND_Finalize(TRITONBACKEND_Backend*) {
  return guarded([] {
    server_guard::ask_readiness(nullptr);
    exit_watch::disarm();  // before the server unloads this library
  });
}

QUIRE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    auto loaded = std::make_unique<LoadedModel>();
    loaded->settings = read_model_settings(model);
    check(TRITONBACKEND_ModelServer(model, &loaded->server));
    if (loaded->settings.role == Role::kGeneration) {
      loaded->generation = std::make_shared<Generation>(loaded->settings, loaded->server);
      loaded->generation->start();
      registry::add(loaded->generation);
    } else if (loaded->settings.role == Role::kTokenizer) {
      loaded->tokenizer = std::make_shared<TokenizerModel>(loaded->settings);
      registry::add(loaded->tokenizer);
    }
    check(TRITONBACKEND_ModelSetState(model, loaded.release()));
  });
}

QUIRE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] {
    const std::unique_ptr<LoadedModel> loaded(state_of(model));
    if (loaded && loaded->generation) loaded->generation->stop();
  });
}

QUIRE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(
    TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    auto loaded = std::make_unique<LoadedInstance>();
    loaded->model = state_of(model);
    if (loaded->model->settings.role == Role::kDetokenizer) {
      loaded->detokenizer = std::make_unique<Detokenizer>(loaded->model->settings, instance);
    } else if (loaded->model->tokenizer) {
      loaded->tokenizer = std::make_unique<Tokenizer>(loaded->model->tokenizer, instance);
    }
    check(TRITONBACKEND_ModelInstanceSetState(instance, loaded.release()));
  });
}

QUIRE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] { const std::unique_ptr<LoadedInstance> loaded(state_of(instance)); });
}

QUIRE_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                    TRITONBACKEND_Request** requests,
                                                                    const uint32_t count) {
  return guarded([&] {
    const LoadedInstance& loaded = *state_of(instance);
    const ModelSettings& settings = loaded.model->settings;
    if (loaded.detokenizer) {
      loaded.detokenizer->execute(requests, count);
    } else if (loaded.tokenizer) {
      loaded.tokenizer->execute(requests, count);
    } else if (settings.role == Role::kUnary) {
      execute_unary({instance, loaded.model->server, settings}, requests, count);
    } else {
      loaded.model->generation->execute(instance, requests, count);
    }
  });
}
