#include "unary_response.h"

#include <utility>

#include "generation.h"

namespace quire::triton {

UnaryResponse::UnaryResponse(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                             const GenerationRequest& generation, Dialect dialect, size_t count,
                             std::shared_ptr<const ModelInfo> info, uint64_t start_ns,
                             std::shared_ptr<ModelMetrics> metrics)
    : info_(std::move(info)),
      metrics_(std::move(metrics)),
      sender_{Role::kUnary, dialect},
      outputs_(generation.outputs & wanted_outputs(generation)),
      n_(static_cast<size_t>(generation.request.params.n)),
      answers_(count * n_),
      open_(instance, request, start_ns, metrics_, answers_.size()) {}

void UnaryResponse::answer(size_t prompt, Chunk chunk) {
  if (!open_.is_open()) return;
  Answer& answer = answers_.at(prompt * n_ + chunk.index);
  static_cast<Chunk&>(answer) = std::move(chunk);
  const uint64_t begin_ns = now_ns();
  finish(answer, outputs_, info_->token_table);
  metrics_->observe_ns(ServerSeries::kStageDetokenize, static_cast<int64_t>(now_ns() - begin_ns));
  if (++num_answered_ < answers_.size()) return;
  open_.send(true, "a response", [this](ResponseBuilder& response) {
    write_outputs(response, sender_, outputs_, {answers_, n_});
  });
}

}  // namespace quire::triton
