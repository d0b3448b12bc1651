"""Writes tiny CLIPs with transformers, and compares what they make of images and texts with ours."""

import shutil

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.goldens.clip.cases import COSINE, GOLDEN, HERE, TEXTS, TOLERANCE, VARIANTS, error, images, load

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [("r", "e"), ("re", "d</w>"), ("i", "n"), ("a", "n"), ("o", "f</w>"), ("t", "h"), ("th", "e</w>")]
VISION = {"hidden_size": 18, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {"hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
# sizes of the images and of patches, which overlap the border of the image of "exact"
SIZES = {"quick": (32, 8), "exact": (31, 7), "vision": (18, 5)}


def make_tokenizer():
    """Returns a tokenizer of all bytes, as CLIP's, with few merges; "the" has a larger number than the end."""
    letters = sorted(ByteLevel.alphabet())
    merged = [*map("".join, MERGES)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged[:-1], START, END, merged[-1]]
    return transformers.CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=MERGES)


def make_model(name, vocab_size, end):
    size, patch = SIZES[name]
    vision = VISION | {"image_size": size, "patch_size": patch, "projection_dim": 12}
    if name == "vision":
        vision |= {"hidden_act": "gelu", "num_attention_heads": 2, "layer_norm_eps": 1e-6}
        return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    text = TEXT | {"vocab_size": vocab_size, "eos_token_id": end}
    if name == "exact":  # the widths of the towers' own configs do not count
        text |= {"hidden_act": "gelu", "eos_token_id": 2, "projection_dim": 99}
        vision |= {"hidden_act": "gelu", "projection_dim": 98}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12 if name == "quick" else 10)
    )


def scatter(model):
    """Moves all parameters off their initial values, so that norms and biases have an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def write():
    """Writes the folders of `cases`, with seeded random weights, and the outputs to GOLDEN."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    for name in VARIANTS:
        shutil.rmtree(HERE / name, ignore_errors=True)
        shards = {"max_shard_size": "20KB"} if name == "exact" else {}
        scatter(make_model(name, len(tokenizer), tokenizer.eos_token_id)).save_pretrained(HERE / name, **shards)
        side = SIZES[name][0]
        # normalized otherwise than CLIP in one, so that the file counts
        other = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]} if name == "exact" else {}
        CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **other
        ).save_pretrained(HERE / name)
    tokenizer.save_pretrained(HERE / "quick")
    # the other form of the files
    tokenizer.backend_tokenizer.model.save(str(HERE / "exact"))
    np.savez_compressed(GOLDEN, **theirs())
    print(f"{GOLDEN}, and beside it {', '.join(VARIANTS)}")


def theirs():
    """Returns the unit vectors of transformers, by variant and kind."""
    arrays = {}
    for name in VARIANTS:
        kind = transformers.CLIPVisionModelWithProjection if name == "vision" else transformers.CLIPModel
        model = kind.from_pretrained(HERE / name)
        pixels = CLIPImageProcessorPil.from_pretrained(HERE / name)(images(), return_tensors="pt").pixel_values
        arrays[f"{name}/pixels"] = pixels.permute(0, 2, 3, 1).numpy()
        with torch.no_grad():
            if name == "vision":
                arrays[f"{name}/images"] = unit(model(pixels).image_embeds)
                continue
            given = transformers.CLIPTokenizer.from_pretrained(HERE / name)(
                TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            )
            arrays[f"{name}/tokens"] = given.input_ids.numpy().astype(np.int32)
            output = model(pixel_values=pixels, **given)
            arrays |= {f"{name}/images": output.image_embeds.numpy(), f"{name}/texts": output.text_embeds.numpy()}
    return arrays


def unit(embeddings):
    return torch.nn.functional.normalize(embeddings, dim=-1).numpy()


def compare():
    """Prints the largest differences, and returns whether all are within the tolerance."""
    expected, passed = theirs(), []
    print("\nCLIP with random weights: unit vectors of images of several sizes, and of texts")
    print(f"{'':64}{'images':>10}{'texts':>10}{'bfloat16: mean cosine':>24}")
    for name, description in VARIANTS.items():
        clip, low = load(name), load(name, jnp.bfloat16)
        kinds = {"images": (images(), "encode_images"), "texts": (TEXTS, "encode_text")}
        kinds = {kind: case for kind, case in kinds.items() if f"{name}/{kind}" in expected}
        differences, cosines = [], []
        for kind, (values, method) in kinds.items():
            other = expected[f"{name}/{kind}"]
            differences.append(error(getattr(clip, method)(values), other))
            cosines.append((getattr(low, method)(values) * other).sum(-1).mean())
        words = "".join(f"{difference:10.1e}" for difference in differences) + " " * 10 * (2 - len(differences))
        print(f"{description:64}{words}{min(cosines):24.5f}")
        passed.append(max(differences) <= TOLERANCE and min(cosines) >= COSINE)
    print(f"{'tolerated':64}{TOLERANCE:10.0e}{TOLERANCE:10.0e}{COSINE:24}")
    return all(passed)
