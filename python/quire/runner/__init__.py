"""From a scheduled batch to sampled ids: device memory, the forward pass, sampling."""
