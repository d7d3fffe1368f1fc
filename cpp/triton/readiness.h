// What the server's readiness asks of our models, see server_guard.h.
#pragma once

#include <cstdint>

struct TRITONSERVER_Server;

namespace quire::triton {

// Whether every engine and tokenizer that a request to `model` needs serves: its own, those of the models
// named in the configuration of a model of role unary, those of an ensemble's steps. Null: all of this
// process. A model that has nothing to do with us serves, as the server says.
bool is_serving(TRITONSERVER_Server* server, const char* model, int64_t version);

}  // namespace quire::triton
