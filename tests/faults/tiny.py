"""A stage that starts in seconds and saves often: there is much to interrupt."""

from tests.helpers.configs import base_config

STEPS = 40
SAVE_EVERY = 4


def get_config():
    return base_config(
        **{
            # as few layers as can be: a start is tracing and compiling, for the most part
            "model.num_res_blocks": (0,),
            "model.attention_types": ((),),
            "model.middle_attention_types": ("text",),
            # with Adam's usual eps, what two orders of a sum differ by makes large steps of almost nothing
            "optimizer.eps": 1e-3,
            "training.steps": STEPS,
            "training.save_every": SAVE_EVERY,
            "training.preview_every": STEPS,
            "training.preview_count": 1,
            "optimizer.decay_steps": STEPS,
        }
    )
