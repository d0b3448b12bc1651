"""The training loop, its step, state and optimizers, and what keeps a run safe.

Networks, losses and data come from the rooms below; nothing here knows how images are sampled.
"""
