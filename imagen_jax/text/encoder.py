"""The frozen text encoder: captions to tokens to embeddings.

B batch, L text length, D width of an embedding.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from imagen_jax.errors import ConfigError
from imagen_jax.models.t5 import T5Encoder
from imagen_jax.parallel.sharding import ReadPart, load_parameters, make_mesh
from imagen_jax.text.fingerprint import encoder_fingerprint
from imagen_jax.text.hub import cached_folder, check_name, hub_folder
from imagen_jax.text.t5_weights import parameter_reader, read_config
from imagen_jax.text.tokenizer import BYTE_VOCAB_SIZE, CaptionReader, Tokenizer, byte_tokenizer, folder_tokenizer

# encoders that ship with the package, by name: their folders
SHAPES_ENCODER = Path(__file__).parents[1] / "datasets" / "shapes" / "encoder"

RANDOM_CONFIG: dict[str, Any] = {
    "vocab_size": BYTE_VOCAB_SIZE,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
}


class TextCondition(NamedTuple):
    """Text that a stage is conditioned on: embeddings [B, L, D] and mask bool [B, L], True where there is a token."""

    embeddings: jax.Array
    mask: jax.Array


@dataclass(frozen=True)
class TextEncoder:
    """A T5 encoder that is never trained.

    shapes: its parameters as abstract arrays, a plain nested dict
    read: gives any part of a parameter, from wherever they lie
    width: D
    length: L
    tokenize: captions -> (tokens int32 [B, L], mask bool [B, L]), NumPy, on the host
    encode: (params, tokens, mask) -> [B, L, D]; pure, so it may be jitted; no gradient flows; zero where mask is False
    fingerprint: a hash of weights and tokenizer, as `fingerprint.py` says; the first call reads all weights
    """

    shapes: dict
    read: ReadPart
    width: int
    length: int
    tokenize: CaptionReader
    encode: Callable[[dict, jax.Array, jax.Array], jax.Array]
    fingerprint: Callable[[], str]

    def load(self, mesh: Mesh) -> dict:
        """Its parameters on a mesh, to be passed to `encode`; each process reads what its devices need, no more."""
        return load_parameters(self.shapes, self.read, mesh)

    @functools.cached_property
    def params(self) -> dict:
        """Its parameters on one device, read when first asked for: for encoders that fit there."""
        return self.load(make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1]))

    def __call__(self, captions: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Embeddings [B, L, D] and mask bool [B, L] of captions, for a quick look; loops jit `encode` themselves."""
        tokens, mask = self.tokenize(captions)
        return self.encode(self.params, jnp.asarray(tokens), jnp.asarray(mask)), jnp.asarray(mask)


def load_encoder(model: str, length: int, dtype: Any = jnp.float32) -> TextEncoder:
    """The text encoder named `model`, for captions of `length` tokens. Its weights are not read yet, only looked at.

    model: "shapes", the small encoder that comes with the package, pretrained on the captions of the shapes data set;
        "random", one of like size with random weights, for tests: it is untrained and knows nothing of words;
        a folder with the Hugging Face files of a T5: config.json, tokenizer files, safetensors;
        or the name of one on the Hugging Face Hub, such as google/flan-t5-xl
    dtype: of parameters and computation; norms and softmax are computed in float32 whatever it is
    Raises UsageError for another name, for a folder that is not a whole T5, and as `hub_folder`.
    """
    if model == "random":
        return random_encoder(seed=0, length=length, dtype=dtype)
    if model == "shapes":
        return folder_encoder(SHAPES_ENCODER, length=length, dtype=dtype)
    folder = Path(model).expanduser()
    if folder.is_file():
        raise ConfigError(
            f"text encoder {model!r} is a file, expected a folder with config.json, tokenizer files and safetensors: "
            "give that folder; of other files of weights none is read"
        )
    return folder_encoder(folder if folder.is_dir() else hub_folder(model), length=length, dtype=dtype)


def load_tokenizer(model: str, length: int) -> Tokenizer:
    """The tokenizer of the text encoder named `model`, see `load_encoder`, without a look at its weights.

    Raises UsageError when it is not on this machine: nothing is downloaded.
    """
    if model == "random":
        return byte_tokenizer(length)
    if model == "shapes":
        return folder_tokenizer(SHAPES_ENCODER, length)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        check_name(model)
        cached = cached_folder(model)
        if cached is None:
            raise ConfigError(f'text encoder "{model}" is not on this machine yet')
        folder = cached
    return folder_tokenizer(folder, length)


def random_encoder(seed: int, length: int, dtype: Any = jnp.float32) -> TextEncoder:
    """A small untrained encoder over bytes, the same for the same seed."""
    init = jax.jit(T5Encoder(**RANDOM_CONFIG).init)
    params = jax.tree.map(np.asarray, init(jax.random.key(seed), *no_text(length=2))["params"])
    return text_encoder(RANDOM_CONFIG, in_memory(params), byte_tokenizer(length), dtype)


def folder_encoder(folder: Path, length: int, dtype: Any = jnp.float32) -> TextEncoder:
    """The encoder of a Hugging Face T5 folder. Raises UsageError when it is not a whole T5."""
    config = read_config(folder)
    read = parameter_reader(folder, T5Encoder(**config), parameter_shapes(config))
    tokenizer = folder_tokenizer(folder, length)
    if tokenizer.vocab_size > config["vocab_size"]:
        raise ConfigError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the embedding only {config['vocab_size']}:"
            " give the tokenizer files that came with the weights"
        )
    return text_encoder(config, read, tokenizer, dtype)


def in_memory(params: dict) -> ReadPart:
    """Parts of parameters that are at hand, a nested dict of NumPy arrays."""
    flat = traverse_util.flatten_dict(params)
    return lambda path, index: flat[path][index]


def text_encoder(config: dict[str, Any], read: ReadPart, tokenizer: Tokenizer, dtype: Any) -> TextEncoder:
    """Put the parts together: a `T5Encoder` of these fields, what reads its parameters, a tokenizer."""
    module = T5Encoder(**config, dtype=dtype)
    shapes = parameter_shapes(config, dtype)

    def encode(params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        embeddings: Any = module.apply({"params": params}, tokens, mask)
        return jax.lax.stop_gradient(embeddings)

    return TextEncoder(
        shapes=shapes,
        read=read,
        width=config["d_model"],
        length=tokenizer.length,
        tokenize=tokenizer,
        encode=encode,
        fingerprint=functools.cache(functools.partial(encoder_fingerprint, module, shapes, read, tokenizer)),
    )


def parameter_shapes(config: dict[str, Any], dtype: Any = jnp.float32) -> dict:
    """The parameters of a `T5Encoder` of these fields, as abstract arrays."""
    shapes = jax.eval_shape(T5Encoder(**config).init, jax.random.key(0), *no_text(length=2))["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def no_text(length: int) -> tuple[jax.Array, jax.Array]:
    """Tokens and mask of one blank caption: enough to initialise with."""
    return jnp.zeros((1, length), jnp.int32), jnp.zeros((1, length), bool)
