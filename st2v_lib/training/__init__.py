"""Training of every part, one file a phase, on ``accelerate``: ``st2v train PHASE --minutes N`` (paper §10)."""
