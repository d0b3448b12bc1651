"""A stage that starts in seconds and saves often: there is much to interrupt."""

from tests.tiny import base_config

STEPS = 60
SAVE_EVERY = 4


def get_config():
    return base_config(
        **{
            "training.steps": STEPS,
            "training.save_every": SAVE_EVERY,
            "training.preview_every": STEPS,
            "training.preview_count": 1,
            "optimizer.decay_steps": STEPS,
        }
    )
