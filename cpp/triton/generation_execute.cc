// What Triton's threads do with a request to generation: read and check it, and post it to the generation
// thread.
#include <atomic>
#include <iterator>
#include <utility>

#include "api.h"
#include "generation.h"

namespace quire::triton {

namespace {

std::atomic<uint64_t> next_request_id{1};

}  // namespace

void Generation::execute(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests,
                         uint32_t count) {
  const auto info = model_info();
  std::vector<std::unique_ptr<ClientRequest>> client_requests;
  client_requests.reserve(count);  // a client_request that has taken its request over must not be lost
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t start_ns = now_ns();
    std::shared_ptr<OpenRequest> open;  // once there, it has taken the request over
    try {
      GenerationRequest generation = read_generation_request(
          requests[i], {Role::kGeneration}, nullptr, info->ready.defaults, settings_.forwarded_headers);
      check_vocabulary(generation.tokenized.vocabulary, info->ready.vocabulary, settings_.name);
      std::vector<GenerationRequest> prompts;
      if (generation.tokenized.prompt_lengths.empty()) {
        prompts.push_back(std::move(generation));
      } else {
        prompts = split_prompts(generation, "text_input");
      }
      for (GenerationRequest& prompt : prompts) {
        check_limits(prompt, info->ready.vocab_size, info->ready.max_model_len);
        prompt.request.request_id = next_request_id++;
      }
      observe_way(prompts.front().request, start_ns);
      client_requests.reserve(client_requests.size() + prompts.size() + count - i);
      const size_t num_prompts = prompts.size();
      open =
          std::make_shared<OpenRequest>(instance, requests[i], start_ns, metrics_, num_prompts, num_prompts);
      for (GenerationRequest& prompt : prompts) {
        client_requests.push_back(std::make_unique<ClientRequest>(open, std::move(prompt), id_, metrics_));
      }
    } catch (const std::exception& error) {
      if (open) {
        open->fail(Failure::kInternal, error.what());
      } else {
        metrics_->count(failure_of(error));
        answer_with_error(instance, requests[i], error, start_ns);
      }
    }
  }
  post(std::move(client_requests));
}

void Generation::execute_unary(TRITONBACKEND_ModelInstance* instance, Dialect dialect,
                               TRITONBACKEND_Request* request, TRITONSERVER_InferenceResponse* tokenized,
                               uint64_t start_ns) {
  const auto info = model_info();
  std::vector<std::unique_ptr<ClientRequest>> client_requests;
  std::shared_ptr<UnaryResponse> answer;  // once there, it has taken the request over
  try {
    const GenerationRequest whole = read_generation_request(
        request, {Role::kUnary, dialect}, tokenized, info->ready.defaults, settings_.forwarded_headers);
    check_vocabulary(whole.tokenized.vocabulary, info->ready.vocabulary, settings_.name);
    observe_way(whole.request, now_ns());
    std::vector<GenerationRequest> prompts =
        split_prompts(whole, tokenized != nullptr ? "text_input" : "prompt_lengths");
    for (GenerationRequest& prompt : prompts) {
      check_limits(prompt, info->ready.vocab_size, info->ready.max_model_len);
      prompt.request.request_id = next_request_id++;
    }
    client_requests.reserve(prompts.size());
    answer = std::make_shared<UnaryResponse>(instance, request, whole, dialect, prompts.size(), info,
                                             start_ns, metrics_);
    for (size_t prompt = 0; prompt < prompts.size(); ++prompt) {
      client_requests.push_back(
          std::make_unique<ClientRequest>(answer, prompt, std::move(prompts[prompt]), id_, metrics_));
    }
  } catch (const std::exception& error) {
    if (answer) {
      answer->fail(Failure::kInternal, error.what());
    } else {
      metrics_->count(failure_of(error));
      answer_with_error(instance, request, error, start_ns);
    }
    return;
  }
  post(std::move(client_requests));
}

// The stages that a tokenizer says that there were. start_ns: when generation, or a unary model's part of it,
// began.
void Generation::observe_way(const NewRequest& request, uint64_t start_ns) {
  if (request.tokenize_ns == 0) return;
  metrics_->observe_ns(ServerSeries::kStageTokenize, request.tokenize_ns);
  metrics_->observe_ns(ServerSeries::kStageToGeneration,
                       static_cast<int64_t>(start_ns) - request.arrival_ns - request.tokenize_ns);
}

// The prompts of a request together: they share an answer, which one thread at a time may touch.
void Generation::post(std::vector<std::unique_ptr<ClientRequest>> client_requests) {
  std::string why = "model '" + settings_.name + "' is being unloaded";
  try {
    const bool is_posted = mailbox_.post([&](Mail& mail) {  // all, or an exception and none
      mail.client_requests.insert(mail.client_requests.end(),
                                  std::make_move_iterator(client_requests.begin()),
                                  std::make_move_iterator(client_requests.end()));
    });
    if (is_posted) return;
  } catch (const std::exception& error) {  // no memory
    why = error.what();
  }
  for (auto& client_request : client_requests) client_request->fail(Failure::kUnavailable, why);
}

}  // namespace quire::triton
