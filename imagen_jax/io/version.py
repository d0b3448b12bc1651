"""The version of the package, for what it writes."""

import importlib

# not by an import, which would count as one of every room that the package's own module names
VERSION: str = importlib.import_module("imagen_jax").__version__
