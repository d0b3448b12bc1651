"""A config for processes of their own: as small as it can be with a parameter that is split over all devices."""

from tests.helpers.configs import base_config

CHANGES = {
    "mesh.data": 1,
    "mesh.fsdp": 8,
    "model.channels": 32,
    "model.blocks": (0,),
    "model.attention": ((),),
    "model.middle_attention": ("text",),
    # where gradients are almost nothing, Adam's usual eps makes large steps of what two orders of a sum differ by
    "optimizer.eps": 1e-3,
    "training.steps": 4,
    "training.save_every": 2,
    "training.preview_every": 4,
}


def get_config():
    return base_config(**CHANGES)
