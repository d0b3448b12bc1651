"""Serve a cascade over HTTP, with a page: `imagen serve --stages=shapes --out=runs/serve`.

The address that it prints has a page to type prompts into. Programs use `POST /v1/jobs`, or OpenAI's image API at
`POST /v1/images/generations`; `/docs` describes all of it. Images and the queue are kept in OUT: jobs that were
accepted are finished after a restart, however the process has ended. With --finetune_dir=DIR, clients teach the cascade
from images that they send.

On 127.0.0.1, the default, only this machine reaches the server. Elsewhere it needs a token, from --token_file,
$IMAGEN_TOKEN or --token; clients send it in the header `Authorization: Bearer TOKEN`. With several tokens, each client
has its own and sees its own jobs alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_path,
    define_pipeline,
    define_safety_checker,
    define_text_cache,
    load_pipeline,
    safety_checker_choice,
)
from imagen_jax.errors import ConfigError, require
from imagen_jax.io.paths import as_path

_TOKEN_VARIABLE = "IMAGEN_TOKEN"  # noqa: S105 - the name of a variable
_EXAMPLES = {
    "shapes": (
        "a large red circle above a small blue square; a yellow ring to the left of a green triangle on a black "
        "background; a purple cross in the center on a gray background"
    )
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    define_path(values, "out", None, "The folder of the queue, the history and the images, on a disk of this machine.")
    flags.DEFINE_string(
        "host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all of this machine.", flag_values=values
    )
    flags.DEFINE_integer(
        "port", 8000, "Port to listen at; 0 for any.", lower_bound=0, upper_bound=65535, flag_values=values
    )
    flags.DEFINE_string(
        "token", None, "Token of clients; several, separated by commas, for several clients.", flag_values=values
    )
    define_path(
        values, "token_file", None, "File with a token on each line, in place of --token, which other users could see."
    )
    flags.DEFINE_list(
        "allowed_hosts",
        [],
        "Names that requests may use for the server besides its address, such as that of a proxy; * for all.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "cors_origin", [], "Sites whose pages may use the API, such as https://example.com.", flag_values=values
    )
    flags.DEFINE_list(
        "trusted_proxies",
        [],
        "Addresses of reverse proxies, whose X-Forwarded-For is believed; * for all.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "name", "", "Name of the cascade for clients; what --stages names by default.", flag_values=values
    )
    flags.DEFINE_string(
        "examples", None, "Prompts that the page offers to begin with, separated by semicolons.", flag_values=values
    )
    flags.DEFINE_list(
        "batch_sizes",
        [],
        "Images to sample at once, such as 1,4,16; batches are filled up to one of them. By default, what is fastest.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_queued_images",
        1024,
        "Images that may wait; of one client, half of them.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_queued_jobs", 512, "Jobs that may wait; of one client, half of them.", lower_bound=1, flag_values=values
    )
    define_path(
        values,
        "finetune_dir",
        None,
        "Folder of fine-tunings, on a disk of this machine: clients may teach the cascade from images.",
    )
    define_text_cache(values)
    define_safety_checker(values)


def run(args: CommandFlags) -> None:
    """Serves the cascade."""
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")
    from imagen_jax.serving.adapter_switch import no_adapters
    from imagen_jax.serving.engine import Engine, QueueLimits
    from imagen_jax.serving.finetuner import Finetuner
    from imagen_jax.serving.http_server import bind
    from imagen_jax.serving.serve import ServeSettings, check_access, serve

    names = args.stage_names()
    name = args.name or _cascade_name(names)
    settings = ServeSettings(
        name=name,
        examples=_split(args.examples if args.examples is not None else _EXAMPLES.get(name, ""), ";"),
        tokens=_tokens(args),
        hosts=args.allowed_hosts,
        origins=args.cors_origin,
        proxies=args.trusted_proxies,
    )
    check_access(args.host, settings)
    batch_sizes = _batch_sizes(args.batch_sizes)
    out = args.output_folder("runs/serve")
    with bind(args.host, args.port) as bound:  # before anything that takes long
        pipeline = load_pipeline(args, text_cache=args.text_cache, safety_checker=safety_checker_choice(args))
        limits = QueueLimits(images=args.max_queued_images, jobs=args.max_queued_jobs)
        finetuner = None
        if args.finetune_dir is not None:
            finetuner = Finetuner(args.finetune_dir, pipeline, names)
        lora_path = no_adapters if finetuner is None else finetuner.adapter_path
        engine = Engine(pipeline, out, batch_sizes=batch_sizes, limits=limits, lora_path=lora_path)
        serve(engine, pipeline, bound, settings, finetuner)


def _cascade_name(names: list[str]) -> str:
    """Returns the name for clients: that of the cascade, or the folders' names."""
    if len(names) == 1 and not Path(names[0]).is_dir():
        return names[0]
    return "+".join(as_path(name).name or "cascade" for name in names)


def _tokens(args: CommandFlags) -> list[str]:
    """Returns the tokens of the flags, or of the environment variable.

    Raises:
        ConfigError: the file cannot be read or has none, or a token has characters that a header cannot have.
    """
    from imagen_jax.serving.auth import check_token

    if args.token_file is not None:
        name = f"--token_file {args.token_file!r}"
        try:
            lines = as_path(args.token_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name} cannot be read as text: {error}") from error
        tokens = [line for line in lines if line.strip() and not line.startswith("#")]
        if not tokens:
            raise ConfigError(f"{name} has no token: give one on each line")
        return [check_token(token, f"a line of {name}") for token in tokens]
    text = os.environ.get(_TOKEN_VARIABLE) if args.token is None else args.token
    source = f"${_TOKEN_VARIABLE}" if args.token is None else "--token"
    tokens = [] if text is None else text.split(",")
    return [check_token(token, source) for token in tokens]


def _batch_sizes(texts: list[str]) -> list[int] | None:
    """Returns the numbers of `--batch_sizes`; None for the default. Raises ConfigError."""
    try:
        return [int(text) for text in texts] or None
    except ValueError as error:
        raise ConfigError(f"--batch_sizes {','.join(texts)!r} are not integers: give for example 1,4,16") from error


def _split(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]
