"""Model architectures: config.json and safetensors to weights and a forward pass."""
