"""The JAX model runtime: decoders, encoders, checkpoints, tokenizers and the engine."""
