"""The serving engine: requests in, tokens and log-probabilities out."""
