"""Agents, their tools and budgets, and the trajectories they leave."""
