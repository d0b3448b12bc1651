"""Make the T5 goldens with transformers' torch classes. By hand, where torch is installed: python make.py

Writes, beside itself, `encoder/` (a tiny T5EncoderModel), `sharded/` (a tiny whole T5 in several files) and
`golden.npz` (tokens, masks, both models' embeddings, and relative position buckets).
"""

from pathlib import Path

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

HERE = Path(__file__).parent
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


def scatter(model: torch.nn.Module) -> torch.nn.Module:
    """Shift every parameter off its initial value, so that norms and biases take part in the comparison."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 + 0.5 * torch.rand_like(parameter))
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    config = T5Config(**FIELDS)
    encoder = scatter(T5EncoderModel(config))
    whole = scatter(T5ForConditionalGeneration(T5Config(**FIELDS, num_decoder_layers=1)))
    encoder.save_pretrained(HERE / "encoder")
    whole.save_pretrained(HERE / "sharded", max_shard_size="30KB")
    length = 150  # past the last bucket of 128
    tokens = torch.randint(1, FIELDS["vocab_size"], (3, length))
    mask = torch.arange(length)[None, :] < torch.tensor([length, 37, 5])[:, None]
    arrays = {"tokens": tokens.numpy().astype(np.int32), "mask": mask.numpy()}
    with torch.no_grad():
        arrays["encoder"] = encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.numpy()
        arrays["whole"] = whole.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.numpy()
    offsets = torch.arange(-300, 301)
    arrays["offsets"] = offsets.numpy()
    arrays["buckets"] = T5Attention._relative_position_bucket(offsets).numpy().astype(np.int32)
    np.savez_compressed(HERE / "golden.npz", **arrays)
    for folder in ("encoder", "sharded"):
        (HERE / folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
