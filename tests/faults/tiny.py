"""A stage that starts in seconds and saves often, so that there is much to interrupt."""

from tests.helpers.configs import base_config

STEPS = 40
SAVE_EVERY = 4


def get_config():
    return base_config(
        **{
            # as few layers as possible: most of a start is tracing and compiling
            "model.num_res_blocks": (0,),
            "model.attention_types": ((),),
            "model.middle_attention_types": ("text",),
            # with Adam's usual eps, two orders of a sum give steps that differ much where gradients are almost zero
            "optimizer.eps": 1e-3,
            "training.steps": STEPS,
            "training.save_every": SAVE_EVERY,
            "training.preview_every": STEPS,
            "training.preview_count": 1,
            # not the length of a run, which is trained in parts; longer ones go on learning
            "optimizer.decay_steps": STEPS,
            "optimizer.end_learning_rate": 1e-4,
        }
    )
