"""T5 encoders on the Hugging Face Hub: from the Hub's cache on this machine, else downloaded into it."""

from fnmatch import fnmatch
from pathlib import Path

from imagen_jax.errors import ConfigError, first_line
from imagen_jax.io.tensor_files import INDEX_FILE
from imagen_jax.text.learned_tokens import FILE as LEARNED
from imagen_jax.text.null_text import FILE as NULL_TEXT
from imagen_jax.text.t5_weights import conversion_command, weight_files
from imagen_jax.text.tokenizer import FILES as TOKENIZER_FILES

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# the only files ever downloaded: no pickled weights, no code
_FILES = ("config.json", *TOKENIZER_FILES, *_WEIGHTS)
# encoders published as pickled weights only -> repositories with the same weights as safetensors
SAFETENSORS_MIRRORS = {"google/t5-v1_1-xxl": "city96/t5-v1_1-xxl-encoder-bf16"}


def hub_folder(name: str) -> Path:
    """Returns the cache folder with the files of the encoder `name`, such as "google/flan-t5-xl".

    Files in the cache are used without asking the Hub, so that a run continues with the encoder it began with.

    Raises:
        ConfigError: the name is invalid, the files are neither in the cache nor can be downloaded, or the Hub has
            pickled weights only.
    """
    check_repo_id(name)
    folder = cached_folder(name)
    if folder is None:
        folder = _download(name)
    return folder


def encoder_files(folder: Path) -> list[str]:
    """Returns the files of the encoder in a folder, without any others that are there. Raises ConfigError."""
    others = ("config.json", *TOKENIZER_FILES, INDEX_FILE, NULL_TEXT, LEARNED)
    return [*(path.name for path in weight_files(folder)), *(name for name in others if (folder / name).is_file())]


def check_repo_id(name: str) -> None:
    """Raises ConfigError unless `name` has the form OWNER/NAME of the Hub's models."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(
            f'text encoder "{name}" is neither "shapes", "random", a folder on this machine, nor a name of the form'
            " OWNER/NAME on the Hugging Face Hub, such as google/flan-t5-xl: give one of these"
        )


def cached_folder(name: str) -> Path | None:
    """Returns the cache folder of the encoder `name`, or None unless all its files are there."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FILES), local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, ConfigError):
        return None
    return folder if all((folder / file).is_file() for file in ("config.json", "tokenizer_config.json")) else None


def _download(name: str) -> Path:
    """Downloads the encoder `name` into the cache and returns its folder there. Raises ConfigError."""
    import huggingface_hub
    from huggingface_hub import constants

    try:
        files = [file.rfilename for file in huggingface_hub.model_info(name).siblings or ()]
        if any(fnmatch(file, pattern) for file in files for pattern in _WEIGHTS):
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # errors of the network, the Hub and the disk
        command = _download_command(SAFETENSORS_MIRRORS.get(name, name), "model*.safetensors*", name)
        mirror = " (it is a mirror: the original has pickled weights only)" if name in SAFETENSORS_MIRRORS else ""
        raise ConfigError(
            f'text encoder "{name}" is neither a folder on this machine nor complete in the Hugging Face cache'
            f" ({constants.HF_HUB_CACHE}), and cannot be downloaded ({first_line(error)}): where there is a network,"
            f" run {command} and copy the folder {name} to the working directory of this command, or set text.model to"
            f" its path{mirror}"
        ) from error
    raise ConfigError(
        f'text encoder "{name}" has no safetensors weights on the Hugging Face Hub, and pickled ones can run code:'
        f" {_mirror_hint(name)}if you trust the author, run once where torch is installed:"
        f" {_download_command(name, 'pytorch_model*.bin', name)} && {conversion_command(Path(name))}"
    )


def _mirror_hint(name: str) -> str:
    """Returns the beginning of a sentence that names a mirror of the weights of `name`, or "" without a mirror."""
    return (
        f"set text.model to {SAFETENSORS_MIRRORS[name]}, a mirror of its encoder, or, "
        if name in SAFETENSORS_MIRRORS
        else ""
    )


def _download_command(name: str, weights: str, folder: str) -> str:
    """Returns the command that downloads the encoder `name`, with weights that match a pattern, to a folder."""
    return f"hf download {name} --include '*.json' --include spiece.model --include '{weights}' --local-dir {folder}"
