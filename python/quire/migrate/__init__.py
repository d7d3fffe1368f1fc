"""Makes a model repository of ours from one of Triton's vLLM backend or of TensorRT-LLM: `quire migrate`."""
