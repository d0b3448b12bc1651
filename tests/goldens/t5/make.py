"""Our T5 encoder beside transformers' torch classes."""

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils import logging

from tests.goldens.t5.cases import FOLDERS, GOLDEN, TOLERANCE, buckets, embeddings

FIELDS = {
    "vocab_size": 40,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 36,
    "num_layers": 2,
    "num_heads": 3,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
logging.disable_progress_bar()
LENGTH = 150  # past the last bucket of 128
LENGTHS = (LENGTH, 37, 5)
OFFSETS = np.arange(-300, 301)


def scatter(model: torch.nn.Module) -> torch.nn.Module:
    """Shift every parameter off its initial value, so that norms and biases take part in the comparison."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 + 0.5 * torch.rand_like(parameter))
    return model.eval()


def write():
    """Models with seeded random weights in FOLDERS, and in GOLDEN what they say of seeded random tokens."""
    torch.manual_seed(0)
    encoder = scatter(T5EncoderModel(T5Config(**FIELDS)))
    whole = scatter(T5ForConditionalGeneration(T5Config(**FIELDS, num_decoder_layers=1)))
    encoder.save_pretrained(FOLDERS["encoder"])
    whole.save_pretrained(FOLDERS["whole"], max_shard_size="30KB")
    for folder in FOLDERS.values():
        (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(GOLDEN, **theirs(torch.randint(1, FIELDS["vocab_size"], (len(LENGTHS), LENGTH)).numpy()))
    print(f"{GOLDEN}, {', '.join(map(str, FOLDERS.values()))}")


def theirs(tokens):
    """Tokens, mask, and what transformers makes of them and of OFFSETS, by name."""
    mask = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
    arguments = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask).long()}
    encoder = T5EncoderModel.from_pretrained(FOLDERS["encoder"])
    whole = T5ForConditionalGeneration.from_pretrained(FOLDERS["whole"])
    with torch.no_grad():
        return {
            "tokens": tokens.astype(np.int32),
            "mask": mask,
            "encoder": encoder(**arguments).last_hidden_state.numpy(),
            "whole": whole.encoder(**arguments).last_hidden_state.numpy(),
            "offsets": OFFSETS,
            "buckets": T5Attention._relative_position_bucket(torch.tensor(OFFSETS)).numpy().astype(np.int32),
        }


def compare():
    """Prints the largest differences; whether all are within the tolerance."""
    with np.load(GOLDEN) as arrays:
        expected = theirs(arrays["tokens"].astype(np.int64))
    tokens, mask = expected["tokens"], expected["mask"]
    print(f"\nT5 v1.1 encoder of {FIELDS['num_layers']} layers with random weights: largest absolute difference of the")
    print(f"embeddings of texts of {', '.join(map(str, LENGTHS))} tokens")
    errors = [np.abs(embeddings(name, tokens, mask) - expected[name])[mask].max() for name in FOLDERS]
    for name, error in zip(("an encoder", "the encoder of a whole T5"), errors, strict=True):
        print(f"{name:32}{error:12.1e}")
    equal = np.array_equal(buckets(OFFSETS), expected["buckets"])
    print(f"{'buckets of offsets -300 to 300':32}{'equal' if equal else 'DIFFERENT':>12}")
    print(f"tolerated {TOLERANCE:.0e}")
    return max(errors) <= TOLERANCE and equal
