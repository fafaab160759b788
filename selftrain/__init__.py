"""Trajectories in, better models out: worlds, rankers, mixtures, the trainer and ReST."""
