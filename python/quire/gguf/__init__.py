"""GGUF files as another source of a model: config, tokenizer, and tensors by Hugging Face's names."""
