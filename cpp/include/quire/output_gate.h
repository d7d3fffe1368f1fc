// Decides when a sequence's ids may leave: at a complete character, and outside what may become a stop
// string.
//
// Each run that leaves decodes on its own (TokenTable::decode), and the runs' texts joined are the text of
// all ids at once, cut at the stop string. Without stop strings no text is made, only its boundaries are
// followed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "quire/sampling.h"
#include "quire/token_table.h"

namespace quire {

class StopMatcher;
class StopScanner;

class OutputGate {
 public:
  // A run of ids, from the first held one on; fields as in Release.
  struct Run {
    uint32_t num_ids = 0;
    uint32_t num_text_ids = 0;
    int32_t trim = 0;
    bool is_first = false;
    OpenText open_text;
  };

  // table must outlive the gate. is_first: nothing in the prompt takes part in the text. open_text: what the
  // prompt leaves open. stops: make_stop_matcher(params), which all sequences of a request share.
  OutputGate(const TokenTable& table, const SamplingParams& params, bool is_first, OpenText open_text,
             std::shared_ptr<const StopMatcher> stops);
  ~OutputGate();
  OutputGate(OutputGate&&) noexcept;
  OutputGate& operator=(OutputGate&&) noexcept;

  // Takes the next id. Returns whether a stop string is complete with it; then finish() is next. can_stop:
  // false while stop strings do not count yet.
  bool push(int32_t id, bool can_stop);
  // Takes a last id that carries no text (a stop token); then finish() is next.
  void push_silent() { ++num_silent_; }

  uint32_t num_held() const { return num_pushed_ + num_silent_ - num_released_; }
  // Whether take_ready() is due: with the first ids, and then with stream_interval of them.
  bool has_ready() const { return num_ready_ > 0 && (num_ready_ >= stream_interval_ || num_released_ == 0); }
  // The ids that may leave now, possibly none. They are held no longer.
  Run take_ready();
  // The stop string that is complete, if any. held_ids: [num_held].
  std::string stop_string(std::span<const int32_t> held_ids) const;
  // The sequence is over: everything held leaves. held_ids: [num_held].
  Run finish(std::span<const int32_t> held_ids);

 private:
  Run take(uint32_t num_ids);

  const TokenTable* table_;
  std::unique_ptr<StopScanner> scanner_;  // null: no stop strings
  TextBoundary boundary_;
  bool makes_text_;  // false: ids leave as they come
  bool skip_special_tokens_;
  bool include_stop_;
  uint32_t stream_interval_;
  bool is_first_;
  OpenText open_text_;
  bool can_cut_;             // the ids so far form complete runs
  uint32_t num_pushed_ = 0;  // ids, silent ones apart
  uint32_t num_silent_ = 0;
  uint32_t num_released_ = 0;
  uint32_t num_ready_ = 0;                // of those held
  uint32_t first_text_idx_ = UINT32_MAX;  // the first id after which the text's start is over
};

}  // namespace quire
