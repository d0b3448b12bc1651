"""A config for separate processes: as small as possible, with a parameter that is sharded over all devices."""

from tests.helpers.configs import base_config

CHANGES = {
    "mesh.data": 1,
    "mesh.fsdp": 8,
    "model.channels": 32,
    "model.num_res_blocks": (0,),
    "model.attention_types": ((),),
    "model.middle_attention_types": ("text",),
    # with Adam's usual eps, two orders of a sum give steps that differ much where gradients are almost zero
    "optimizer.eps": 1e-3,
    "training.steps": 4,
    "training.save_every": 2,
    "training.preview_every": 4,
}


def get_config():
    return base_config(**CHANGES)
