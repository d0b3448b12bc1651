"""The frozen text encoder: captions to tokens to embeddings.

Shapes: B batch, L text length, D embedding width.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from imagen_jax.diffusion.keys import key_from_seed
from imagen_jax.errors import ConfigError
from imagen_jax.io.bucket import BucketError, is_bucket
from imagen_jax.io.local_copy import local_folder
from imagen_jax.io.paths import as_path
from imagen_jax.models.t5 import LEARNED_TOKENS, T5Encoder
from imagen_jax.parallel.axes import TEXT, TOKENS
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import ReadSliceFn, load_params
from imagen_jax.text.fingerprint import encoder_fingerprint
from imagen_jax.text.hub import cached_folder, check_repo_id, hub_folder
from imagen_jax.text.learned_tokens import FILE as LEARNED_FILE
from imagen_jax.text.learned_tokens import Words, read_learned, with_words
from imagen_jax.text.null_text import FILE as NULL_TEXT
from imagen_jax.text.null_text import read_null_text
from imagen_jax.text.t5_weights import parameter_reader, read_config
from imagen_jax.text.tokenizer import BYTE_VOCAB_SIZE, TextInput, Tokenizer, byte_tokenizer, folder_tokenizer

# the encoder that ships with the package
SHAPES_ENCODER = Path(__file__).parents[1] / "datasets" / "shapes" / "encoder"

_RANDOM_CONFIG: dict[str, Any] = {
    "vocab_size": BYTE_VOCAB_SIZE,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
}


class TextCondition(NamedTuple):
    """The text that a stage is conditioned on.

    Attributes:
        embeddings: [B, L, D].
        mask: bool [B, L], True where there is a token.
    """

    embeddings: jax.Array | np.ndarray
    mask: jax.Array | np.ndarray


TEXT_CONDITION_AXES: Any = TextCondition(TEXT, TOKENS)  # type: ignore[arg-type]  # names in the place of arrays


@dataclass(frozen=True)
class TextEncoder:
    """A frozen T5 encoder.

    Attributes:
        shapes: its parameters as abstract arrays, a plain nested dict.
        read: reads any part of a parameter.
        width: embedding width D.
        length: text length L.
        tokenize: captions -> (tokens int32 [B, L], mask bool [B, L]), NumPy, on the host.
        encode: (params, tokens, mask) -> [B, L, D], pure; where mask is False it is zero, or with
            the padding "encoded" the embedding of padding.
        fingerprint: returns a hash of weights and tokenizer, see `fingerprint.py`; the first call reads all weights.
            It does not depend on length, padding and cleaning.
        null_text: returns the null text that is stored beside the encoder, float32 [L, D]; raises ConfigError if there
            is none. All of its positions are read.
        module: the network; None for embeddings from a cache.
        learned: words with rows of their own in the token table, see `with_learned`.
        plain_tokenizer: that without these words; None if there are none.
    """

    shapes: dict
    read: ReadSliceFn
    width: int
    length: int
    tokenize: TextInput
    encode: Callable[[dict, jax.Array, jax.Array], jax.Array]
    fingerprint: Callable[[], str]
    null_text: Callable[[], np.ndarray]
    module: T5Encoder | None = None
    learned: Words = field(default_factory=dict)
    plain_tokenizer: Tokenizer | None = None

    def with_learned(self, words: Words) -> Self:
        """Returns the encoder with more words in its token table; its other parameters and its fingerprint stay.

        Args:
            words: each with its rows, float32 [N, D]; a word that it has already gets these.

        Raises:
            ConfigError: embeddings are from a cache, or a word cannot be one.
        """
        if not words:
            return self
        if self.module is None:
            raise ConfigError(
                "embeddings from a cache have no learned tokens: set text.cache to '', and encode captions as they come"
            )
        learned = {**self.learned, **words}
        rows = np.concatenate(list(learned.values())).astype(np.float32)
        module, read = self.module.clone(learned_tokens=len(rows)), self.read
        counts = {word: len(own) for word, own in learned.items()}
        plain = self.plain_tokenizer or self.tokenize
        assert isinstance(plain, Tokenizer)  # of an encoder with a network
        return replace(
            self,
            shapes=self.shapes | {LEARNED_TOKENS: jax.ShapeDtypeStruct(rows.shape, jnp.float32)},
            read=lambda path, index: rows[index] if path == (LEARNED_TOKENS,) else read(path, index),
            tokenize=with_words(plain, counts, module.vocab_size),
            encode=_make_encode(module),
            module=module,
            learned=learned,
            plain_tokenizer=plain,
        )

    def load(self, mesh: Mesh) -> dict:
        """Loads the parameters for `encode` on a mesh; each process reads only what its devices need."""
        return load_params(self.shapes, self.read, mesh)

    @functools.cached_property
    def params(self) -> dict:
        """The parameters on one device, loaded at first use: for encoders that fit there."""
        return self.load(make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1]))

    def __call__(self, captions: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Returns (embeddings [B, L, D], mask bool [B, L]) of captions, not jitted: loops should jit `encode`."""
        tokens, mask = self.tokenize(captions)
        return self.encode(self.params, jnp.asarray(tokens), jnp.asarray(mask)), jnp.asarray(mask)


def load_encoder(
    model: str, length: int, dtype: Any = jnp.float32, padding: str = "zero", cleaning: str = "none"
) -> TextEncoder:
    """Opens the text encoder named `model`. Its weights are read later, by `load` or `params`.

    Args:
        model: "shapes", the small encoder that comes with the package, pretrained on captions of the shapes data set;
            "random", an untrained encoder of similar size, for tests; a folder with the Hugging Face files of a T5
            (config.json, tokenizer files, safetensors), copied to this machine if it is in a bucket; or a name on the
            Hugging Face Hub, such as google/flan-t5-xl.
        length: text length L in tokens.
        dtype: dtype of parameters and computation; norms and softmax are always in float32.
        padding: embeddings after the last token: "zero", or "encoded", those of T5, for networks without a mask.
        cleaning: what is done to captions before they are tokenized, see `cleaning_fn`.

    Raises:
        ConfigError: the name is not known, the folder is not a complete T5, the download fails, or a package that the
            cleaning needs is missing.
    """
    folder = encoder_folder(model)
    if folder is None:
        return random_encoder(seed=0, length=length, dtype=dtype, padding=padding, cleaning=cleaning)
    return folder_encoder(folder, length=length, dtype=dtype, padding=padding, cleaning=cleaning)


def encoder_folder(model: str) -> Path | None:
    """Returns the folder with the files of the text encoder named `model`, see `load_encoder`; None for "random".

    Raises:
        ConfigError: there is no such encoder, or the download fails.
    """
    if model == "random":
        return None
    if model == "shapes":
        return SHAPES_ENCODER
    if is_bucket(model):
        return _copy_of_bucket(model)
    folder = as_path(model)
    if folder.is_file():
        raise ConfigError(
            f"text encoder {model!r} is a file, expected a folder with config.json, tokenizer files and safetensors: "
            "give that folder; weights in other files are not supported"
        )
    return folder if folder.is_dir() else hub_folder(model)


def is_local_folder(model: str) -> bool:
    """Returns whether `model`, see `load_encoder`, names a folder of this machine, and not what others have too."""
    return model not in ("random", "shapes") and not is_bucket(model) and as_path(model).is_dir()


def load_tokenizer(model: str, length: int, padding: str = "zero", cleaning: str = "none") -> Tokenizer:
    """Loads the tokenizer of the text encoder named `model` (see `load_encoder`) without its weights.

    Raises:
        ConfigError: the tokenizer is not on this machine; nothing is downloaded. Or a package that the cleaning needs
            is missing.
    """
    if model == "random":
        return byte_tokenizer(length, padding, cleaning)
    if model == "shapes":
        return folder_tokenizer(SHAPES_ENCODER, length, padding, cleaning)
    if is_bucket(model):
        return folder_tokenizer(_copy_of_bucket(model), length, padding, cleaning)
    folder = as_path(model)
    if not folder.is_dir():
        check_repo_id(model)
        cached = cached_folder(model)
        if cached is None:
            raise ConfigError(f'text encoder "{model}" is not on this machine yet')
        folder = cached
    return folder_tokenizer(folder, length, padding, cleaning)


def _copy_of_bucket(model: str) -> Path:
    """Returns a local copy of the folder of a T5 in a bucket. Raises ConfigError if there is none."""
    try:
        folder = as_path(model)
        if not folder.is_dir():
            raise ConfigError(f"text encoder {model!r} is not a folder with files: copy those of the T5 there")
        return local_folder(folder)
    except BucketError as error:
        raise ConfigError(f"the text encoder cannot be read: {error}") from error


def random_encoder(
    seed: int, length: int, dtype: Any = jnp.float32, padding: str = "zero", cleaning: str = "none"
) -> TextEncoder:
    """Returns a small untrained encoder over bytes, a function of the seed."""
    init = jax.jit(T5Encoder(**_RANDOM_CONFIG).init)
    params = jax.tree.map(np.asarray, init(key_from_seed(seed), *_blank_tokens(length=2))["params"])
    tokenizer = byte_tokenizer(length, padding, cleaning)
    return build_encoder(_RANDOM_CONFIG, in_memory_reader(params), tokenizer, dtype)


def folder_encoder(
    folder: Path, length: int, dtype: Any = jnp.float32, padding: str = "zero", cleaning: str = "none"
) -> TextEncoder:
    """Opens the encoder of a Hugging Face T5 folder. Raises ConfigError if it is not a complete T5."""
    config = read_config(folder)
    read = parameter_reader(folder, T5Encoder(**config), parameter_shapes(config))
    tokenizer = folder_tokenizer(folder, length, padding, cleaning)
    if tokenizer.vocab_size > config["vocab_size"]:
        raise ConfigError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the embedding only {config['vocab_size']}:"
            " give the tokenizer files that came with the weights"
        )
    encoder = build_encoder(config, read, tokenizer, dtype, folder / NULL_TEXT)
    if not (folder / LEARNED_FILE).is_file():
        return encoder
    file = read_learned(folder)
    return encoder.with_learned(file.fitting(encoder.width, lambda: file.encoder))


def in_memory_reader(params: dict) -> ReadSliceFn:
    """Returns a function that reads parts of parameters in memory, a nested dict of NumPy arrays."""
    flat = traverse_util.flatten_dict(params)
    return lambda path, index: flat[path][index]


def build_encoder(
    config: dict[str, Any], read: ReadSliceFn, tokenizer: Tokenizer, dtype: Any, null_text: Path | None = None
) -> TextEncoder:
    """Builds an encoder.

    Args:
        config: keyword fields of `T5Encoder`.
        read: reads any part of a parameter.
        tokenizer: its tokenizer, which also knows whether padding is encoded.
        dtype: dtype of parameters and computation.
        null_text: the file of a stored null text, which may be absent; None without a folder.
    """
    module = T5Encoder(**config, encode_padding=tokenizer.padding == "encoded", dtype=dtype)
    shapes = parameter_shapes(config, dtype)
    read_null = null_text_reader(null_text, (tokenizer.length, config["d_model"]))
    stored = null_text if null_text is not None and null_text.is_file() else None

    return TextEncoder(
        shapes=shapes,
        read=read,
        width=config["d_model"],
        length=tokenizer.length,
        tokenize=tokenizer,
        encode=_make_encode(module),
        fingerprint=functools.cache(functools.partial(encoder_fingerprint, module, shapes, read, tokenizer, stored)),
        null_text=read_null,
        module=module,
    )


def null_text_reader(file: Path | None, shape: tuple[int, int]) -> Callable[[], np.ndarray]:
    """Returns `TextEncoder.null_text` for a file that may be absent, None for an encoder without files."""

    def read() -> np.ndarray:
        if file is None:
            raise ConfigError("diffusion.null_text is 'stored', and this text encoder has no files: set it to 'empty'")
        return read_null_text(file, shape)

    return read


@functools.cache
def _make_encode(module: T5Encoder) -> Callable[[dict, jax.Array, jax.Array], jax.Array]:
    """Returns `TextEncoder.encode`: one function for all equal modules, so that `jax.jit` compiles it once."""

    def encode(params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        embeddings: Any = module.apply({"params": params}, tokens, mask)
        return embeddings

    return encode


def parameter_shapes(config: dict[str, Any], dtype: Any = jnp.float32) -> dict:
    """Returns the parameters of a `T5Encoder` with these fields as abstract arrays, a plain nested dict."""
    shapes = jax.eval_shape(T5Encoder(**config).init, jax.random.key(0), *_blank_tokens(length=2))["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def _blank_tokens(length: int) -> tuple[jax.Array, jax.Array]:
    """Returns (tokens, mask) of a batch with one blank caption, for initialization."""
    return jnp.zeros((1, length), jnp.int32), jnp.zeros((1, length), bool)
