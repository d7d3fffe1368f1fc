#include "wire_logprobs.h"

namespace quire::wire {
namespace {

constexpr size_t kReleaseLogprobsSize = 5 * 4 + 8;

}  // namespace

void put_logprobs(std::string& out, const StepOutputs& frame) {
  put(out, static_cast<uint32_t>(frame.logprobs.size()));
  for (const ReleaseLogprobs& run : frame.logprobs) {
    for (const uint32_t value :
         {run.release_idx, run.begin, run.num_per_id, run.num_prompt_places, run.num_per_prompt_place}) {
      put(out, value);
    }
    put(out, run.cumulative_logprob);
  }
  put_array(out, frame.logprob_entries);
}

void get_logprobs(Reader& reader, StepOutputs& frame) {
  frame.logprobs.resize(reader.get_count(kReleaseLogprobsSize));
  for (ReleaseLogprobs& run : frame.logprobs) {
    for (uint32_t* value :
         {&run.release_idx, &run.begin, &run.num_per_id, &run.num_prompt_places, &run.num_per_prompt_place}) {
      *value = reader.get<uint32_t>();
    }
    run.cumulative_logprob = reader.get<double>();
  }
  reader.get_array(frame.logprob_entries);
  for (size_t i = 0; i < frame.logprobs.size(); ++i) {
    const ReleaseLogprobs& run = frame.logprobs[i];
    if (run.release_idx >= frame.releases.size()) {
      throw Error("wire: logprobs of release " + std::to_string(run.release_idx) + " of " +
                  std::to_string(frame.releases.size()));
    }
    // The products below cannot wrap then.
    if (run.num_per_id > kMaxLogprobs + 1 || run.num_per_prompt_place > kMaxLogprobs + 1) {
      throw Error("wire: a release has " + std::to_string(run.num_per_id) + " logprobs per id and " +
                  std::to_string(run.num_per_prompt_place) + " per place of the prompt; allowed: at most " +
                  std::to_string(kMaxLogprobs + 1));
    }
    Release& release = frame.releases[run.release_idx];
    const uint64_t num_entries = uint64_t{release.num_ids} * run.num_per_id +
                                 uint64_t{run.num_prompt_places} * run.num_per_prompt_place;
    if (uint64_t{run.begin} + num_entries > frame.logprob_entries.size()) {
      throw Error("wire: a release names logprobs [" + std::to_string(run.begin) + ", +" +
                  std::to_string(num_entries) + ") of " + std::to_string(frame.logprob_entries.size()));
    }
    release.logprobs_idx = static_cast<int32_t>(i);
  }
}

}  // namespace quire::wire
