"""Weights in and out: safetensors, GGUF, and where models come from."""
