#include "tokenizer.h"

#include <algorithm>
#include <chrono>
#include <sstream>
#include <vector>

#include "api.h"
#include "failure.h"
#include "registry.h"
#include "wire_bytes.h"

namespace quire::triton {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kMaxRequestBytes = 64 << 20;  // of all tensors and parameters; docs/clients.md
// How long the work for a client that has left goes on: less than a new process takes to start.
constexpr auto kCancelledPatience = 500ms;

// Adds up what a request brings, and refuses too much before it is copied.
class SizeCheck {
 public:
  void add(std::string_view name, uint64_t size) {
    if (size >= largest_) {
      largest_ = size;
      name_ = name;
    }
    total_ += size;
    if (total_ <= kMaxRequestBytes) return;
    throw InvalidArgument(
        std::string(name_), std::to_string(largest_) + " bytes",
        "at most " + std::to_string(kMaxRequestBytes) + " bytes in all inputs of a request");
  }

 private:
  uint64_t total_ = 0;
  uint64_t largest_ = 0;
  std::string_view name_;
};

void put_tensors(TRITONBACKEND_Request* request, std::string& frame, SizeCheck& sizes) {
  std::string joined;
  uint32_t count = 0;
  check(TRITONBACKEND_RequestInputCount(request, &count));
  wire::put(frame, count);
  for (uint32_t i = 0; i < count; ++i) {
    const InputTensor tensor = read_input(request, i, joined);
    sizes.add(tensor.name, tensor.bytes.size());
    wire::put_string(frame, tensor.name);
    wire::put(frame, static_cast<uint32_t>(tensor.type));
    wire::put(frame, static_cast<uint32_t>(tensor.shape.size()));
    for (const int64_t size : tensor.shape) wire::put(frame, size);
    wire::put_string(frame, tensor.bytes);
  }
}

void put_parameters(TRITONBACKEND_Request* request, std::string& frame, SizeCheck& sizes) {
  const std::vector<Parameter> parameters = read_parameters(request);
  wire::put(frame, static_cast<uint32_t>(parameters.size()));
  for (const auto& [name, value] : parameters) {
    sizes.add(name, std::string_view(name).size());
    wire::put_string(frame, name);
    wire::put(frame, static_cast<uint8_t>(value.index()));
    if (const auto* text = std::get_if<const char*>(&value)) {
      sizes.add(name, std::string_view(*text).size());
      wire::put_string(frame, *text);
    } else {
      std::visit([&](auto number) { wire::put(frame, number); }, value);
    }
  }
}

void put_outputs(TRITONBACKEND_Request* request, std::string& frame) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  wire::put(frame, count);
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, i, &name));
    wire::put_string(frame, name);
  }
}

void send_tensors(TRITONBACKEND_Request* request, std::string_view payload) {
  wire::Reader reader(payload);
  ResponseBuilder response(request);
  const auto count = reader.get<uint32_t>();
  std::vector<int64_t> shape;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string name(reader.get_string());
    const auto type = static_cast<TRITONSERVER_DataType>(reader.get<uint32_t>());
    reader.get_array(shape);
    const std::string_view bytes = reader.get_string();
    char* buffer = response.add(name.c_str(), type, shape, bytes.size());
    if (!bytes.empty()) std::memcpy(buffer, bytes.data(), bytes.size());
  }
  reader.expect_end();
  response.send(true);
}

std::string seconds_text(double seconds) {
  std::ostringstream text;
  text << seconds << " s";
  return text.str();
}

ServerError cancelled() { return {TRITONSERVER_ERROR_CANCELLED, "the client cancelled the request"}; }

}  // namespace

void Tokenizer::execute(TRITONBACKEND_Request** requests, uint32_t count) {
  answer_each(instance_, requests, count, [this](TRITONBACKEND_Request* request, uint64_t start_ns) {
    try {
      answer(request, start_ns);
    } catch (const std::exception& error) {
      model_->metrics.count(failure_of(error));
      throw;
    }
  });
}

void Tokenizer::answer(TRITONBACKEND_Request* request, uint64_t arrival_ns) {
  if (is_cancelled(request)) throw cancelled();
  SizeCheck sizes;
  std::string frame;
  begin_frame(TokenizerFrame::kRequest, frame);
  wire::put(frame, arrival_ns);
  put_tensors(request, frame, sizes);
  put_parameters(request, frame, sizes);
  put_outputs(request, frame);
  end_frame(frame);

  const TokenizerWorker::Answer answer = ask(request, frame);
  if (is_cancelled(request)) throw cancelled();
  if (answer.type == TokenizerFrame::kError) {
    wire::Reader reader(answer.payload);
    const auto code = static_cast<TRITONSERVER_Error_Code>(reader.get<uint32_t>());
    throw ServerError(code, std::string(reader.get_string()));
  }
  send_tensors(request, answer.payload);
}

// Tokenizing changes nothing, so a request whose worker dies goes to the next one; once only, because the
// request may be what kills them.
TokenizerWorker::Answer Tokenizer::ask(TRITONBACKEND_Request* request, std::string_view frame) {
  const double timeout_s = model_->settings.tokenize_timeout_s;
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s));
  auto cancelled_until = Clock::time_point::max();
  const auto watch = [&] {
    const auto now = Clock::now();
    if (cancelled_until == Clock::time_point::max() && is_cancelled(request)) {
      cancelled_until = now + kCancelledPatience;
    }
    return now < std::min(deadline, cancelled_until) && !registry::is_given_up();
  };
  const auto gave_up = [&] {
    if (cancelled_until != Clock::time_point::max()) return cancelled();
    if (registry::is_given_up()) return ServerError(TRITONSERVER_ERROR_UNAVAILABLE, "the server stops");
    return ServerError(TRITONSERVER_ERROR_UNAVAILABLE, "tokenizer: the request took longer than " +
                                                           seconds_text(timeout_s) +
                                                           " (config.pbtxt: parameters: tokenize_timeout_s)");
  };

  std::string first_loss;
  while (true) {
    const auto lease = keeper_.take(watch);
    if (!lease) throw gave_up();
    try {
      auto answer = lease->worker().exchange(frame, watch);
      if (answer) return *std::move(answer);
      lease->drop("is ended with its request, which took too long or whose client has left");
      throw gave_up();
    } catch (const WorkerLost& lost) {
      lease->drop(lost.what());
      if (!first_loss.empty()) {
        throw ServerError(TRITONSERVER_ERROR_INTERNAL, "tokenizer: the process that had this request " +
                                                           first_loss + ", and the next one that had it " +
                                                           lost.what() + "; it is not tried again");
      }
      first_loss = lost.what();
    }
  }
}

}  // namespace quire::triton
