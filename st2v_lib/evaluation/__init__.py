"""Scores of the tiny models on prompts they have never seen, written as result files."""
