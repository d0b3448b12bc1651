"""Writes a tiny safety checker with diffusers, and compares what `imagen convert` makes of it."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from diffusers import IFPipeline, IFSuperResolutionPipeline
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from diffusers.utils import logging
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.conversion.to_diffusers import to_diffusers
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.safety_checker import SafetyChecker
from tests.goldens.clip.make import scatter
from tests.goldens.if_pipelines.cases import FIRST, SECOND
from tests.goldens.safety_checker.cases import (
    CHECKER,
    COUNT,
    GOLDEN,
    INPUTS,
    SIZES,
    TOLERANCE,
    images,
    with_checker,
)

SIDE = 14
TOWER = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 4,
    "projection_dim": 8,
}
KINDS = ("nsfw", "watermark")
# diffusers 0.42.1 does not call post_init, which sets what transformers 5 needs to load any weights
IFSafetyChecker.all_tied_weights_keys = {}
logging.set_verbosity_error()
logging.disable_progress_bar()


def write():
    """Writes the folders of `cases`, with seeded random weights, and the scores to GOLDEN."""
    torch.manual_seed(0)
    checker = scatter(IFSafetyChecker(transformers.CLIPConfig(vision_config=TOWER, text_config={"hidden_size": 8})))
    inputs = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    inputs.save_pretrained(INPUTS)
    # each head flags a third of the images
    scores = {size: theirs(checker, inputs, size) for size in SIZES}
    for head, index in ((checker.p_head, 0), (checker.w_head, 1)):
        values = np.sort(np.concatenate([scores[size][:, index] for size in SIZES]))
        cut = 2 * len(values) // 3
        with torch.no_grad():
            head.bias.add_(0.5 - float(values[cut - 1 : cut + 1].mean()))
    checker.save_pretrained(CHECKER)
    arrays = {}
    for size in SIZES:
        arrays[f"{size}/scores"] = theirs(checker, inputs, size)
        arrays[f"{size}/images"], *found = shown(checker, inputs, size)
        arrays |= {f"{size}/{kind}": np.array(flags) for kind, flags in zip(KINDS, found, strict=True)}
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}, and beside it {CHECKER.name}, {INPUTS.name}")


def theirs(checker, inputs, size):
    """Returns the scores [N, 2] of diffusers for the images of a size."""
    pixels = inputs(list(images(size)), return_tensors="pt").pixel_values
    with torch.no_grad():
        embeddings = checker.vision_model(pixels)[0]
        return torch.cat([checker.p_head(embeddings), checker.w_head(embeddings)], 1).numpy()


def shown(checker, inputs, size):
    """Returns the images that diffusers shows, uint8, and which it has found to be of either kind."""
    pixels = inputs(list(images(size)), return_tensors="pt").pixel_values
    result, *found = checker(clip_input=pixels, images=images(size).astype(np.float32) / 255)
    return (np.asarray(result) * 255).round().astype(np.uint8), *found


def compare():
    """Converts, converts back, and returns whether diffusers computes the same, and sees the same pipelines."""
    print("\nThe safety checker of DeepFloyd IF with random weights, converted and converted back")
    print(f"{'':32}{'largest difference':>20}{'flagged of':>12}{'flags':>10}{'images':>10}{'tensors':>10}")
    passed = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pipelines = [with_checker(path, work / path.name) for path in (FIRST, SECOND)]
        convert(list(map(str, pipelines)), work / "cascade", ConvertSettings(dtype="float32"))
        to_diffusers(work / "cascade", work / "back")
        ours = SafetyChecker(work / "cascade/safety_checker", make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1]))
        for stage, kind in enumerate((IFPipeline, IFSuperResolutionPipeline)):
            before, after = (kind.from_pretrained(path) for path in (pipelines[stage], work / f"back/stage_{stage}"))
            tensors = same_tensors(before.safety_checker, after.safety_checker)
            for size in SIZES:
                scores = np.stack(ours.scores(images(size), COUNT), 1)
                difference = np.abs(scores - theirs(after.safety_checker, after.feature_extractor, size)).max()
                expected, *found = shown(after.safety_checker, after.feature_extractor, size)
                report = ours(images(size), COUNT)
                equal = [
                    np.array_equal(np.stack(found), np.stack([report.nsfw_detected, report.watermark_detected])),
                    np.array_equal(expected, report.blacken(images(size))),
                    tensors,
                ]
                words = "".join(f"{'equal' if one else 'DIFFERENT':>10}" for one in equal)
                counts = f"{report.flagged.sum()} of {COUNT}"
                print(f"{f'stage {stage + 1}, images of {size}×{size}':32}{difference:20.1e}{counts:>12}{words}")
                passed.append(difference <= TOLERANCE and all(equal))
            before.save_pretrained(work / "saved" / str(stage))
            passed.append(same_files(work / "saved" / str(stage), pipelines[stage]))
        print(f"{'written as by diffusers':32}{'yes' if passed[-1] else 'NO':>20}")
    print(f"{'tolerated':32}{TOLERANCE:20.0e}")
    return all(passed)


def same_tensors(*checkers):
    first, second = (checker.state_dict() for checker in checkers)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def same_files(saved, written):
    """Returns whether `with_checker` has written the index, and the files of the checker, as diffusers does."""
    indices = [json.loads((path / "model_index.json").read_text()) for path in (saved, written)]
    # what diffusers has loaded from, it writes too
    indices = [{key: value for key, value in index.items() if key != "_name_or_path"} for index in indices]
    name = "safety_checker/model.safetensors"
    return indices[0] == indices[1] and (saved / name).read_bytes() == (written / name).read_bytes()
