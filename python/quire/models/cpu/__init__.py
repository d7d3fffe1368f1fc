"""Models on a CPU: weights as oneDNN wants them, GEMMs of torch, all else our kernels."""
