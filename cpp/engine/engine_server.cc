#include "quire/engine_server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <utility>

#include "quire/error.h"
#include "socket_io.h"

namespace quire {
namespace {

constexpr auto kDrainTimeout = std::chrono::seconds(5);

}  // namespace

EngineServer::EngineServer(EngineCore& core, int fd) : core_(core), fd_(fd) {
  try {
    reader_ = std::thread([this] { read_frames(); });
    writer_ = std::thread([this] { write_frames(); });
  } catch (...) {
    ::shutdown(fd_, SHUT_RDWR);
    if (reader_.joinable()) reader_.join();
    ::close(fd_);
    throw;
  }
}

EngineServer::~EngineServer() {
  {
    std::unique_lock lock(mutex_);
    closing_ = true;
    output_arrived_.notify_all();
    if (!drained_.wait_for(lock, kDrainTimeout, [this] { return outbox_.empty() && !writing_; })) {
      outbox_.clear();
      ::shutdown(fd_, SHUT_RDWR);  // the client is there but does not read: frees the writer
    }
  }
  ::shutdown(fd_, SHUT_RD);  // frees the reader
  reader_.join();
  writer_.join();
  ::close(fd_);
}

void EngineServer::send_ready(const std::string& model, const SamplingParams& defaults,
                              const std::string& vocabulary, const std::string& loaded,
                              const std::map<std::string, std::string>& cache_config) {
  const EngineConfig& config = core_.config();
  wire::ReadyFrame ready;
  ready.model = model;
  ready.max_model_len = config.max_model_len;
  ready.vocab_size = config.vocab_size;
  ready.block_size = config.block_size;
  ready.num_blocks = config.num_blocks;
  ready.max_num_seqs = config.max_num_seqs;
  ready.max_num_batched_tokens = config.max_num_batched_tokens;
  ready.defaults = defaults;
  ready.token_table = core_.token_table().serialize();
  ready.vocabulary = vocabulary;
  ready.loaded = loaded;
  ready.disable_log_stats = config.disable_log_stats;
  for (const auto& [name, value] : cache_config) ready.cache_config.push_back({name, value});
  ready.stats = core_.stats();
  frame_.clear();
  wire::encode(ready, frame_);
  enqueue(frame_);
}

bool EngineServer::wait_for_work() {
  {
    std::unique_lock lock(mutex_);
    // Only this thread changes the core, so asking it under the lock is free of races.
    intake_arrived_.wait(lock, [this] {
      return stopping_ || client_gone_ || !inbox_.empty() || core_.has_unfinished_requests();
    });
    if (!protocol_error_.empty()) throw Error(protocol_error_);
    if (stopping_ || client_gone_) return false;
    std::swap(inbox_, taken_);
  }
  for (wire::RequestsFrame& frame : taken_) apply(frame);
  taken_.clear();
  return true;
}

void EngineServer::apply(wire::RequestsFrame& frame) {
  for (NewRequest& request : frame.additions) {
    const uint64_t request_id = request.request_id;
    try {
      core_.add_request(std::move(request));
    } catch (const InvalidArgument& error) {
      core_.fail(request_id, error.what());
    }
  }
  for (const uint64_t request_id : frame.cancellations) core_.cancel(request_id);
}

void EngineServer::publish() {
  const StepOutputs& outputs = core_.outputs();
  if (outputs.releases.empty() && has_published_ && outputs.stats == published_) return;
  frame_.clear();
  wire::encode(outputs, frame_);
  enqueue(frame_);
  published_ = outputs.stats;
  has_published_ = true;
}

void EngineServer::enqueue(std::string_view frames) {
  std::lock_guard lock(mutex_);
  if (!writing_ && outbox_.empty()) {
    // The usual case: the client keeps up and the socket's buffer takes the frame, which costs less than
    // waking a thread. The lock keeps the order; MSG_DONTWAIT keeps it short.
    // Where the client is gone, the reader sees it too and reports it.
    frames.remove_prefix(engine::write(fd_, frames, false).value_or(frames.size()));
    if (frames.empty()) return;
  }
  outbox_.append(frames);
  output_arrived_.notify_one();
}

void EngineServer::write_frames() {
  std::string batch;
  std::unique_lock lock(mutex_);
  while (true) {
    output_arrived_.wait(lock, [this] { return closing_ || !outbox_.empty(); });
    if (outbox_.empty()) return;
    std::swap(outbox_, batch);
    writing_ = true;
    lock.unlock();
    const bool alive = engine::write(fd_, batch, true).has_value();
    batch.clear();
    lock.lock();
    writing_ = false;
    if (!alive) outbox_.clear();
    if (outbox_.empty()) drained_.notify_all();
  }
}

void EngineServer::read_frames() {
  std::array<char, wire::kHeaderSize> head;
  std::string payload;
  std::string error;
  try {
    while (engine::read_exactly(fd_, head)) {
      const wire::FrameHeader header = wire::parse_header(head);
      if (header.type != wire::FrameType::kRequests) {
        throw Error("frame type: got " + std::to_string(static_cast<int>(header.type)) +
                    "; allowed from a client: " +
                    std::to_string(static_cast<int>(wire::FrameType::kRequests)) + " (requests)");
      }
      payload.resize(header.payload_size);
      if (!engine::read_exactly(fd_, payload)) break;
      wire::RequestsFrame frame;
      wire::decode_requests(payload, frame);
      {
        std::lock_guard lock(mutex_);
        inbox_.push_back(std::move(frame));
      }
      intake_arrived_.notify_one();
    }
  } catch (const std::exception& exception) {
    error = exception.what();
  }
  // The client is gone, or no longer to be understood. Closing both directions also frees a writer that waits
  // for it.
  {
    std::lock_guard lock(mutex_);
    client_gone_ = true;
    protocol_error_ = std::move(error);
    if (!closing_) ::shutdown(fd_, SHUT_RDWR);
  }
  intake_arrived_.notify_all();
}

void EngineServer::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  intake_arrived_.notify_all();
}

bool send_start_error(int fd, std::string_view message) {
  std::string frame;
  wire::encode_start_error(message, frame);
  return engine::write(fd, frame, true).has_value();
}

}  // namespace quire
