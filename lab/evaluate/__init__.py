"""Evaluation: scores, baselines, distances of surfaces, and the figures that show them."""
