#include "client_request.h"

#include <algorithm>
#include <utility>

#include "output_table.h"

namespace quire::triton {

namespace {

constexpr uint32_t kChunkOutput = outputs::mask_of({Role::kGeneration}, "chunk");

}  // namespace

ClientRequest::ClientRequest(GenerationRequest generation, uint64_t owner,
                             std::shared_ptr<ModelMetrics> metrics)
    : generation_(std::move(generation)),
      owner_(owner),
      metrics_(std::move(metrics)),
      wanted_(wanted_outputs(generation_)),
      sequences_(static_cast<size_t>(generation_.request.params.n)),
      num_unfinished_(sequences_.size()),
      num_ends_left_(sequences_.size()) {}

ClientRequest::ClientRequest(std::shared_ptr<OpenRequest> open, GenerationRequest generation, uint64_t owner,
                             std::shared_ptr<ModelMetrics> metrics)
    : ClientRequest(std::move(generation), owner, std::move(metrics)) {
  open_ = std::move(open);
}

ClientRequest::ClientRequest(std::shared_ptr<UnaryResponse> response, size_t prompt,
                             GenerationRequest generation, uint64_t owner,
                             std::shared_ptr<ModelMetrics> metrics)
    : ClientRequest(std::move(generation), owner, std::move(metrics)) {
  unary_ = std::move(response);
  prompt_idx_ = prompt;
}

void ClientRequest::take(const Release& release, const StepOutputs& outputs) {
  QUIRE_CHECK(release.index < sequences_.size(),
              "request " << id() << ", sequence " << release.index << " of " << sequences_.size());
  Sequence& sequence = sequences_[release.index];
  QUIRE_CHECK(!sequence.is_finished,
              "request " << id() << ", sequence " << release.index << " was finished before");
  const bool is_last = release.finish_reason != FinishReason::kNone;
  // Only the end of the text may be cut: runs are merged by joining them.
  const uint32_t num_text_ids = generation_.request.params.detokenize ? release.num_ids : 0;
  QUIRE_CHECK(is_last || (release.trim == 0 && release.num_text_ids == num_text_ids),
              "request " << id() << ", trim " << release.trim << ", " << release.num_text_ids << " of "
                         << release.num_ids << " ids with text");
  if (open_) open_->mark_output();
  Chunk& pending = sequence.pending;
  if (!sequence.is_due()) {
    pending.is_first = release.is_first;
    pending.open_text = release.open_text;
  }
  const auto ids = outputs.ids(release);
  pending.ids.insert(pending.ids.end(), ids.begin(), ids.end());
  pending.num_text_ids += release.num_text_ids;
  pending.trim = release.trim;
  pending.usage = release.usage;
  pending.finish_reason = release.finish_reason;
  has_output_ |= !ids.empty();
  if (release.finish_reason == FinishReason::kDeadline) note_miss();
  sequence.is_finished = is_last;
  num_unfinished_ -= is_last;
  if (!release.details) return;
  const ReleaseDetails& details = *release.details;
  pending.timing = details.timing;
  pending.stop_reason =
      details.stop_token_id < 0 ? details.stop_string : std::to_string(details.stop_token_id);
  pending.num_per_id = details.num_per_id;
  pending.cumulative_logprob = static_cast<float>(details.cumulative_logprob);
  pending.logprobs.insert(pending.logprobs.end(), details.logprobs.begin(), details.logprobs.end());
  if (details.num_per_prompt_place == 0) return;
  pending.num_per_prompt_place = details.num_per_prompt_place;
  pending.prompt_logprobs = details.prompt_logprobs;
}

void ClientRequest::note_miss() {
  if (!std::exchange(has_missed_deadline_, true)) metrics_->increment(ServerSeries::kDeadlineMisses);
}

void ClientRequest::end_sequences(FinishReason reason) {
  if (reason == FinishReason::kDeadline) note_miss();
  for (Sequence& sequence : sequences_) {
    if (sequence.is_finished) continue;
    if (!sequence.is_due()) sequence.pending.open_text = {};  // it belongs to the first ids, which have left
    sequence.pending.finish_reason = reason;
    sequence.is_finished = true;
    --num_unfinished_;
  }
}

const ClientRequest::Sequence* ClientRequest::find_due() const {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const Sequence& sequence = sequences_[(next_sequence_ + i) % sequences_.size()];
    if (sequence.is_due() && (generation_.stream || sequence.is_finished)) return &sequence;
  }
  return nullptr;
}

void ClientRequest::sign(Chunk& chunk, bool is_last) const {
  chunk.owner = owner_;
  chunk.request_id = id();
  chunk.acknowledge = generation_.tokenized.acknowledge && !is_last;
  chunk.sent_ns = static_cast<int64_t>(now_ns());
}

Chunk ClientRequest::take_chunk(Sequence& sequence, bool is_last) {
  Chunk chunk = std::move(sequence.pending);
  // What holds for later ids, too, and for an end without any.
  sequence.pending = {};
  sequence.pending.usage = chunk.usage;
  sequence.pending.num_per_id = chunk.num_per_id;
  sequence.pending.cumulative_logprob = chunk.cumulative_logprob;
  sign(chunk, is_last);
  metrics_->observe(ServerSeries::kResponseTokens, static_cast<double>(chunk.ids.size()));
  chunk.index = static_cast<uint32_t>(&sequence - sequences_.data());
  chunk.batch_index = generation_.batch_index;
  chunk.outputs = wanted_;
  chunk.has_logprobs = generation_.has_logprobs;
  chunk.skip_special_tokens = generation_.request.params.skip_special_tokens;
  chunk.usage.num_prompt_tokens = static_cast<uint32_t>(generation_.request.prompt_ids.size());
  if (!std::exchange(sequence.is_anything_sent, true)) {
    chunk.prompt_text = generation_.prompt_text;
    if (generation_.tokenized.includes_prompt_ids) chunk.prompt_ids = generation_.request.prompt_ids;
  }
  if (!std::exchange(is_warned_, true)) chunk.warnings = generation_.tokenized.warnings;
  return chunk;
}

void ClientRequest::send_to_unary() {
  try {
    for (Sequence& sequence : sequences_) unary_->answer(prompt_idx_, take_chunk(sequence, true));
  } catch (const std::exception& error) {
    unary_->fail(Failure::kInternal, error.what());
  }
  unary_.reset();
}

void ClientRequest::send() {
  last_sent_ = Clock::now();
  if (unary_) {
    send_to_unary();
    return;
  }
  std::span<Sequence> sent(sequences_);
  if (sends_one()) {
    const auto due = static_cast<size_t>(find_due() - sequences_.data());
    sent = sent.subspan(due, 1);
    next_sequence_ = (due + 1) % sequences_.size();
  }
  num_ends_left_ -= static_cast<size_t>(std::ranges::count(sent, true, &Sequence::is_finished));
  const bool is_last = num_ends_left_ == 0;
  // What is sent counts as sent before it is on its way: the acknowledgement may come from another thread at
  // once.
  is_outstanding_ = generation_.tokenized.acknowledge && !is_last;
  open_->send(is_last, "a response", [&](ResponseBuilder& response) {
    std::vector<Answer> answers;
    for (Sequence& sequence : sent) {
      Answer& answer = answers.emplace_back();
      static_cast<Chunk&>(answer) = take_chunk(sequence, is_last);
      finish_receipt(answer);
    }
    write_outputs(response, {Role::kGeneration}, generation_.outputs, {answers, answers.size()});
  });
  if (is_last || !open_->is_open()) open_.reset();
}

bool ClientRequest::is_probe_due(Clock::time_point now, Clock::duration silence) const {
  return generation_.tokenized.acknowledge && is_open() && !is_outstanding_ && !is_finished() &&
         now - last_sent_ >= silence;
}

void ClientRequest::send_probe() {
  is_outstanding_ = true;
  last_sent_ = Clock::now();
  open_->send(false, "a probe", [this](ResponseBuilder& response) {
    Answer probe;
    probe.is_probe = true;
    sign(probe, false);
    write_outputs(response, {Role::kGeneration}, generation_.outputs & kChunkOutput, {{&probe, 1}, 1});
  });
  if (!open_->is_open()) open_.reset();
}

bool ClientRequest::is_abandoned(Clock::time_point now, Clock::duration patience) const {
  return is_outstanding_ && !is_waiting_for_delivery_ && now - last_sent_ >= patience;
}

void ClientRequest::acknowledge() {
  is_outstanding_ = is_waiting_for_delivery_ = false;
  if (has_failed_) fail(failure_, error_);
}

void ClientRequest::end_with_error(Failure failure, const std::string& message) {
  if (failure == Failure::kDeadline) note_miss();
  if (!is_outstanding_) {
    fail(failure, message);
  } else if (!has_failed_) {
    has_failed_ = true;
    failure_ = failure;
    error_ = message;
  }
}

void ClientRequest::fail(Failure failure, const std::string& message) {
  if (open_) std::exchange(open_, nullptr)->fail(failure, message);
  if (unary_) std::exchange(unary_, nullptr)->fail(failure, message);
}

}  // namespace quire::triton
