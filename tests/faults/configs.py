"""Configs with random mistakes, which are either refused with a message or work."""

import copy
import json
import random
import traceback

import jax

from imagen_jax.config.load import from_json, load_config, to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.stages import stage as stages
from imagen_jax.training.validate import check_training

# values of wrong types and out of range
VALUES = [
    *(None, True, False, "", "x", "none", "float16", "True", "8", "a\0b", "../..", "é" * 300),
    *(-1, 0, 1, 2, 3, 5, 7, 8, 12, 16, 64, 1000, 10**6, 10**30, -(10**30)),
    *(0.0, -0.5, 0.5, 0.999, 1.0, 1.5, 100.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *(
        (),
        [],
        {},
        (1,),
        (1, 2),
        (8, 8),
        (0, 0),
        (1, 2, 3),
        ("self",),
        (("self",),),
        ((), ()),
        ("text", 1),
        {"a": 1},
        {1: 2},
    ),
    *((("(", ("data",)),), (("stem", ("data", "data")),), ((".*", 3),), "abc", b"bytes", 3 + 4j, object),
]
# the keys that define the network: other changes do not affect whether it can be traced
TRACED = ("model", "image_size", "low_res_size", "channels", "text.length", "diffusion.variance_type")
MAX_TRACED_SIZE = 1024  # tracing larger networks is slow and finds nothing more


def mutated(config: StageConfig, rng: random.Random) -> tuple[dict, list[str]]:
    """Returns a copy of a config as nested dicts with one to three mistakes, and the changed keys."""
    tree = copy.deepcopy(config.to_dict())
    changed = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        group, path = tree, []
        while True:
            name = rng.choice(sorted(group, key=str))
            path.append(str(name))
            if not (isinstance(group[name], dict) and group[name]) or rng.random() < 0.02:
                break
            group = group[name]
        match rng.choice(("value", "value", "value", "scaled", "scaled", "scaled", "missing", "misspelled", "surplus")):
            case "value":
                group[name] = rng.choice(VALUES)
            case "scaled" if isinstance(group[name], (int, float)) and not isinstance(group[name], bool):
                group[name] *= rng.choice((-1, 0, 0.5, 2, 2, 3, 4))
            case "missing":
                del group[name]
            case "misspelled":
                letters = list(str(name))
                letters.insert(rng.randrange(len(letters) + 1), rng.choice("aeiou_."))
                group["".join(letters)] = group.pop(name)
            case _:
                group[f"{name}_{rng.randrange(100)}"] = rng.choice(VALUES)
        changed.append(".".join(path))
        if not tree:
            break
    return tree, changed


def check_mutated(config: StageConfig | tuple[dict, list[str]]) -> str:
    """Returns "refused" or "works", or else the error as text.

    The network of a config that is not refused must be traceable, and its data must open.
    """
    tree, changed = config if isinstance(config, tuple) else (config.to_dict(), list(TRACED))
    try:
        made = load_config(tree)
        check_training(made, jax.devices()[:1])
        make_source(made.data, made.data.split, made.image_size)
    except ConfigError as error:
        well_formed = all("\n" not in problem and 20 < len(problem) < 1000 for problem in error.problems)
        return "refused" if well_formed else f"bad message: {error}"
    except Exception:
        return traceback.format_exc()
    try:
        assert from_json(json.loads(json.dumps(to_json(made)))) == made
        small = max(*made.image_hw, made.model.channels, made.text.length) <= MAX_TRACED_SIZE
        if small and any(key.startswith(TRACED) for key in changed):
            network = stages.make_network(made)
            arguments = stages.network_arguments(made, 8, made.image_hw)
            jax.eval_shape(network.init, jax.random.key(0), *arguments)
    except Exception:
        return traceback.format_exc()
    return "works"
