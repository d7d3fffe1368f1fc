"""Quire: LLM serving on NVIDIA Triton with its own paged-attention engine."""
