"""T5 encoders by their names on the Hugging Face Hub: from its cache on this machine, else downloaded into it."""

from fnmatch import fnmatch
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.text.t5_weights import conversion, weight_files
from imagen_jax.text.tokenizer import FILES as TOKENIZER_FILES

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# all that is ever taken: no pickled weights, and no program
FILES = ("config.json", *TOKENIZER_FILES, *WEIGHTS)
# encoders whose publishers have pickled weights only, and where others keep the same ones as safetensors
COPIES = {"google/t5-v1_1-xxl": "city96/t5-v1_1-xxl-encoder-bf16"}


def hub_folder(name: str) -> Path:
    """The folder in the cache with the files of the encoder `name`, such as "google/flan-t5-xl".

    What is in the cache is taken as it is, without a look at the Hub: a run goes on with the encoder it began with.
    Raises UsageError when that is no such name, when the files can be had neither from the cache nor from the Hub, and
    when the Hub has pickled weights only.
    """
    check_name(name)
    folder = cached_folder(name)
    if folder is None:
        folder = download(name)
    return folder


def check_name(name: str) -> None:
    """Raises UsageError unless `name` has the form OWNER/NAME that the Hub gives its models."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(
            f'text encoder "{name}" is neither "shapes", "random" nor a folder on this machine, nor has it the form of'
            " a name on the Hugging Face Hub, such as google/flan-t5-xl: give one of these"
        )


def cached_folder(name: str) -> Path | None:
    """Where the cache has the encoder `name`, if all its files are there."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES), local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, ConfigError):
        return None
    return folder if all((folder / file).is_file() for file in ("config.json", "tokenizer_config.json")) else None


def download(name: str) -> Path:
    """Downloads the encoder `name` into the cache; its folder there. Raises UsageError as `hub_folder`."""
    import huggingface_hub
    from huggingface_hub import constants

    try:
        files = [file.rfilename for file in huggingface_hub.model_info(name).siblings or ()]
        if any(fnmatch(file, pattern) for file in files for pattern in WEIGHTS):
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # whatever the network, the Hub and the disk have to say
        raise ConfigError(
            f'text encoder "{name}" is neither a folder on this machine nor whole in the Hugging Face cache'
            f" ({constants.HF_HUB_CACHE}), and cannot be downloaded ({first_line(error)}): where there"
            f" is a network, run {fetching(COPIES.get(name, name), 'model*.safetensors*', name)} and put the folder"
            f" {name} into the folder that the command is started in, or name its place as text.model"
            f"{' (it is a copy: the original has pickled weights only)' if name in COPIES else ''}"
        ) from error
    raise ConfigError(
        f'text encoder "{name}" has no safetensors weights on the Hugging Face Hub, and pickled ones run code from the'
        f" file: {copy_of(name)}where torch is installed and you trust the author, once run:"
        f" {fetching(name, 'pytorch_model*.bin', name)} && {conversion(Path(name))}"
    )


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def copy_of(name: str) -> str:
    """Where else the weights of `name` are, as the beginning of a sentence; nothing where that is not known."""
    return f"set text.model to {COPIES[name]}, a copy of its encoder, or, " if name in COPIES else ""


def fetching(name: str, weights: str, folder: str) -> str:
    """The command that downloads the encoder `name` into a folder, with the weights that a pattern describes."""
    return f"hf download {name} --include '*.json' --include spiece.model --include '{weights}' --local-dir {folder}"
