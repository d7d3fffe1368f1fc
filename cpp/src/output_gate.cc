#include "quire/output_gate.h"

#include <string>
#include <utility>

#include "quire/error.h"
#include "stop_scanner.h"

namespace quire {

OutputGate::OutputGate(const TokenTable& table, const SamplingParams& params, bool is_first,
                       OpenText open_text, std::shared_ptr<const StopMatcher> stops)
    : table_(&table),
      scanner_(stops ? std::make_unique<StopScanner>(std::move(stops), is_first, table.kind(), open_text)
                     : nullptr),
      boundary_(table.kind(), open_text),
      makes_text_(params.detokenize),
      skip_special_tokens_(params.skip_special_tokens),
      include_stop_(params.include_stop_str_in_output),
      stream_interval_(static_cast<uint32_t>(params.stream_interval)),
      is_first_(is_first),
      open_text_(open_text),
      can_cut_(open_text.is_nothing()) {}

OutputGate::~OutputGate() = default;
OutputGate::OutputGate(OutputGate&&) noexcept = default;
OutputGate& OutputGate::operator=(OutputGate&&) noexcept = default;

bool OutputGate::push(int32_t id, bool can_stop) {
  if (!makes_text_) {
    ++num_pushed_;
    num_ready_ = num_held();
    return false;
  }
  if (table_->contributes(id, skip_special_tokens_)) {
    const TextBoundary::Step step = boundary_.push(*table_, id);
    can_cut_ = step.cut_after;
    if (is_first_ && first_text_idx_ == UINT32_MAX && table_->ends_start(id)) first_text_idx_ = num_pushed_;
    if (scanner_) scanner_->push(*table_, id, step, can_stop);
  } else if (scanner_) {
    scanner_->push_without_text(can_cut_);
  }
  ++num_pushed_;
  if (can_cut_) num_ready_ = scanner_ ? scanner_->count_ready() : num_held();
  return scanner_ && scanner_->is_matched();
}

OutputGate::Run OutputGate::take(uint32_t num_ids) {
  Run run;
  run.num_ids = num_ids;
  if (makes_text_) run.num_text_ids = num_ids;
  run.is_first = is_first_ && num_released_ <= first_text_idx_;
  if (num_released_ == 0) run.open_text = open_text_;
  num_released_ += num_ids;
  num_ready_ = 0;
  return run;
}

OutputGate::Run OutputGate::take_ready() {
  const Run run = take(num_ready_);
  if (scanner_) scanner_->release(run.num_ids);
  return run;
}

std::string OutputGate::stop_string(std::span<const int32_t> held_ids) const {
  if (!scanner_ || !scanner_->is_matched()) return {};
  const bool is_first = is_first_ && num_released_ <= first_text_idx_;
  const OpenText open_text = num_released_ == 0 ? open_text_ : OpenText();
  const std::string text =
      table_->decode(held_ids.first(num_held() - num_silent_), is_first, 0, skip_special_tokens_, open_text);
  return text.substr(scanner_->match_begin(), scanner_->match_end() - scanner_->match_begin());
}

OutputGate::Run OutputGate::finish(std::span<const int32_t> held_ids) {
  QUIRE_CHECK(held_ids.size() == num_held(), held_ids.size() << " given, " << num_held() << " held");
  Run run = take(num_held());
  if (makes_text_) run.num_text_ids -= num_silent_;
  if (scanner_ && scanner_->is_matched()) {
    const uint64_t kept = include_stop_ ? scanner_->match_end() : scanner_->match_begin();
    const std::string text = table_->decode(held_ids.first(run.num_text_ids), run.is_first, 0,
                                            skip_special_tokens_, run.open_text);
    QUIRE_CHECK(kept <= text.size(), kept << " of " << text.size() << " bytes before the stop string");
    run.trim = static_cast<int32_t>(text.size() - kept);
  }
  return run;
}

}  // namespace quire
