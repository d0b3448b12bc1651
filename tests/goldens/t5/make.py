"""Compares our T5 encoder with transformers' torch classes."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils import logging

from tests.goldens.t5.cases import (
    COSINE,
    GOLDEN,
    HERE,
    TOLERANCE,
    VARIANTS,
    buckets,
    cosines,
    embeddings,
    error,
    padded_embeddings,
)

# d_kv * num_heads differs from d_model, so that mixing them up fails
FIELDS = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 3,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
# name -> (family, model class, other fields)
MODELS = {
    "encoder": ("T5", "EncoderModel", {}),
    "whole": ("T5", "ForConditionalGeneration", {"num_decoder_layers": 1}),
    "first": ("T5", "EncoderModel", {"feed_forward_proj": "relu"}),
    "silu": ("T5", "EncoderModel", {"feed_forward_proj": "gated-silu"}),
    "mt5": ("MT5", "EncoderModel", {}),
    "umt5": ("UMT5", "EncoderModel", {}),
}
logging.disable_progress_bar()
LENGTH = 150  # past the last bucket of 128
LENGTHS = (LENGTH, 37, 5)
# as DeepFloyd IF has them; the last text is an empty caption
PADDED_LENGTH = 77
PADDED_LENGTHS = (PADDED_LENGTH, 9, 1)
OFFSETS = np.arange(-300, 301)


def model_class(name):
    family, kind, _ = MODELS[name]
    return getattr(transformers, family + kind)


def scatter(model: torch.nn.Module) -> torch.nn.Module:
    """Moves all parameters off their initial values, so that norms and biases have an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 + 0.5 * torch.rand_like(parameter))
    return model.eval()


def write():
    """Writes models with seeded random weights, and their outputs for seeded random tokens to GOLDEN."""
    torch.manual_seed(0)
    for name, (family, _, changes) in MODELS.items():
        config = getattr(transformers, f"{family}Config")(**FIELDS | changes)
        shards = {"max_shard_size": "12KB"} if name == "whole" else {}
        scatter(model_class(name)(config)).save_pretrained(HERE / name, **shards)
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(GOLDEN, **theirs(torch.randint(1, FIELDS["vocab_size"], (len(LENGTHS), LENGTH)).numpy()))
    print(f"{GOLDEN}, and beside it {', '.join(MODELS)}")


def theirs(tokens):
    """Returns tokens, mask, and the outputs of transformers for them and OFFSETS; embeddings are [N, D]."""
    mask = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
    arguments = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask).long()}
    arrays = {
        "tokens": tokens.astype(np.int32),
        "mask": mask,
        "offsets": OFFSETS,
        "buckets": T5Attention._relative_position_bucket(torch.tensor(OFFSETS)).numpy().astype(np.int32),
    }
    for name in MODELS:
        with torch.no_grad():
            encoded = model_class(name).from_pretrained(HERE / name).get_encoder()(**arguments)
        arrays[name] = encoded.last_hidden_state.numpy()[mask]
    return arrays | theirs_padded()


def theirs_padded():
    """Returns tokens, a mask, and the outputs of transformers for them, padding included: embeddings [B, L, D]."""
    mask = np.arange(PADDED_LENGTH) < np.array(PADDED_LENGTHS)[:, None]
    tokens = np.random.RandomState(0).randint(2, FIELDS["vocab_size"], mask.shape)
    tokens[range(len(mask)), mask.sum(1) - 1] = 1  # the end of sequence
    tokens = np.where(mask, tokens, 0)
    with torch.no_grad():
        encoder = model_class("encoder").from_pretrained(HERE / "encoder")
        encoded = encoder(torch.tensor(tokens), attention_mask=torch.tensor(mask).long())[0].numpy()
    return {"padded/tokens": tokens.astype(np.int32), "padded/mask": mask, "padded": encoded}


def compare():
    """Prints the largest differences, and returns whether all are within the tolerance."""
    with np.load(GOLDEN) as arrays:
        expected = theirs(arrays["tokens"].astype(np.int64))
    tokens, mask = expected["tokens"], expected["mask"]
    lengths = ", ".join(map(str, LENGTHS))
    print(f"\nT5 encoders of {FIELDS['num_layers']} layers with random weights, texts of {lengths} tokens")
    print(f"{'':32}{'float32: largest difference':>30}{'bfloat16: mean cosine (least)':>32}")
    passed = []
    for name, description in VARIANTS.items():
        difference = error(embeddings(name, tokens, mask), expected[name])
        bfloat16_cosines = cosines(embeddings(name, tokens, mask, jnp.bfloat16), expected[name])
        print(f"{description:32}{difference:30.1e}{bfloat16_cosines.mean():22.5f} ({bfloat16_cosines.min():.5f})")
        passed.append(difference <= TOLERANCE and bfloat16_cosines.mean() >= COSINE)
    padded = error(padded_embeddings(expected["padded/tokens"], expected["padded/mask"]), expected["padded"])
    print(f"{f'v1.1, and padding to {PADDED_LENGTH} tokens':32}{padded:30.1e}")
    passed.append(padded <= TOLERANCE)
    equal = np.array_equal(buckets(OFFSETS), expected["buckets"])
    print(f"{'buckets of offsets -300 to 300':32}{'equal' if equal else 'DIFFERENT':>30}")
    print(f"{'tolerated':32}{TOLERANCE:30.0e}{COSINE:22}")
    return all(passed) and equal
