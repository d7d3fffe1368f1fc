// Python's names of the sampler and of what goes with it.
#include "bindings.h"
#include "bindings/kernel_fields.h"
#include "quire/cuda/logprobs.h"
#include "quire/cuda/sample.h"
#include "quire/cuda/token_counts.h"

namespace quire::bindings {

void bind_sample(py::module_& m) {
  using Sample = cuda::SampleParams;
  def_launch(m, "sample", cuda::launch_sample,
             fields(sample_fields<Sample>(), stream<Sample>(), field<&Sample::sample_rows>("sample_rows", 0),
                    field<&Sample::last_token_ids>("last_token_ids", 0), sample_edit_fields<Sample>()));
  using Counts = cuda::TokenCountsParams;
  def_launch(m, "token_counts", cuda::launch_token_counts,
             fields(token_counts_fields<Counts>(), stream<Counts>()));
  using Logprobs = cuda::LogprobsParams;
  def_launch(m, "logprobs", cuda::launch_logprobs, fields(logprobs_fields<Logprobs>(), stream<Logprobs>()));
}

}  // namespace quire::bindings
