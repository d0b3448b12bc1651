"""Training of one stage: state, optimizer, step, and what is written down of it."""
