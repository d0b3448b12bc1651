"""Compares adapters of DeepFloyd IF's network with those of diffusers and PEFT, in both directions.

diffusers computes in float64, ours in float32. What diffusers writes are files that the tests load.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, IFPipeline
from diffusers.utils.peft_utils import scale_lora_layers
from peft import LoraConfig

from tests.goldens.deepfloyd_if.cases import TEXT_WIDTH, UNETS, random, unet_inputs
from tests.goldens.deepfloyd_if.make import channels_first, channels_last, unet_of
from tests.goldens.if_lora.cases import (
    ALPHA,
    GOLDEN,
    NAMES,
    RANK,
    SCALE,
    TARGETS,
    TOLERANCE,
    folder,
    output,
    write_ours,
)

ADAPTER = "subject"


def pipeline_of(name):
    """Returns diffusers' pipeline around a network; adapters do not need the rest."""
    fields, size, _, second = UNETS[name]
    parts = {"tokenizer": None, "text_encoder": None, "safety_checker": None, "feature_extractor": None}
    unet = unet_of(fields, size, second)
    return IFPipeline(unet=unet, scheduler=DDPMScheduler(), watermarker=None, requires_safety_checker=False, **parts)


def predict(unet, name):
    """Returns what diffusers' network predicts [B, H, W, 6]."""
    z, level, text, low_res, aug_level = unet_inputs(name)
    images = z if low_res is None else np.concatenate([z, low_res], axis=-1)
    labels = None if aug_level is None else torch.tensor(aug_level)
    assert text.shape[-1] == TEXT_WIDTH
    with torch.no_grad():
        sample = unet(
            channels_first(images), torch.tensor(level), torch.tensor(text).double(), class_labels=labels
        ).sample
    return channels_last(sample)


def write_theirs(name, out):
    """Writes an adapter as diffusers' script for IF does, and returns what its network predicts with it."""
    pipeline = pipeline_of(name)
    pipeline.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS)), ADAPTER)
    state = {}
    with torch.no_grad():
        for key, parameter in pipeline.unet.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.tensor(0.3 * random(key, tuple(parameter.shape))))
                state[key.replace(f".{ADAPTER}", "")] = parameter.float().contiguous()
    config = pipeline.unet.peft_config[ADAPTER].to_dict()
    shutil.rmtree(out, ignore_errors=True)
    IFPipeline.save_lora_weights(out, unet_lora_layers=state, unet_lora_adapter_metadata=config)
    scale_lora_layers(pipeline.unet, SCALE)
    return predict(pipeline.unet.double(), name)


def with_ours(name, path):
    """Returns what diffusers' network predicts with an adapter of ours, loaded as users do."""
    pipeline = pipeline_of(name)
    pipeline.load_lora_weights(path, adapter_name=ADAPTER)
    # not by set_adapters, which fails for networks whose levels have different numbers of blocks
    scale_lora_layers(pipeline.unet, SCALE)
    return predict(pipeline.unet.double(), name)


def write():
    """Writes adapters of diffusers, and what its network predicts with them."""
    np.savez_compressed(GOLDEN, **{name: write_theirs(name, folder(name)) for name in NAMES})


def compare():
    """Prints the largest differences, and returns whether all are within the tolerance."""
    print("\nAdapters of DeepFloyd IF: largest absolute difference, with random weights")
    passed = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            theirs, ours = folder(name), Path(temporary) / f"ours {name}"
            write_ours(name, ours)
            without = output(name, theirs, 0.0)
            for what, expected, actual in (
                ("theirs in ours", write_theirs(name, Path(temporary) / f"theirs {name}"), output(name, theirs)),
                ("ours in theirs", with_ours(name, ours), output(name, ours)),
            ):
                difference, changed = np.abs(actual - expected).max(), np.abs(expected - without).max()
                print(f"{name + ', ' + what:32}{difference:12.1e}   of changes up to {changed:.1f}")
                passed.append(difference <= TOLERANCE < changed)
    print(f"{'tolerated':32}{TOLERANCE:12.0e}")
    return all(passed)
