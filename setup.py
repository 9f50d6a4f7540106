"""Packaging of refvlm_jax: every dependency has a reason beside it."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRES = [
    "jax>=0.10.2,!=0.11.0,!=0.11.1,<0.13",  # the array language; 0.11.0/0.11.1 break flax 0.12.8
    "flax>=0.12.8,<0.13",  # NNX modules: parameter containers with pure calls
    "optax>=0.2.8,<0.3",  # optimisers, schedules, on-device Hungarian matching
    "orbax-checkpoint>=0.12.2,<0.13",  # sharded asynchronous checkpoints
    "grain>=0.2.18,<0.3",  # threaded and multi-process input pipeline
    "array-record>=0.8,<0.9",  # random-access record shards
    "transformers>=5,<6",  # fast tokenizers from a local folder
    "tokenizers>=0.22,<0.24",  # trains the small bundled tokenizer
    "numpy>=2,<3",  # host arrays
    "matplotlib>=3.9,<4",  # loss curves of the report
    "pillow>=11,<14",  # image decoding, resizing, the shapes world's drawing
    "ml-collections>=1.1,<2",  # configuration files and command-line overrides
    "msgpack>=1.0.8,<2",  # the Dialog record on disk
    "pycocotools>=2.0.8,<3",  # COCO RLE codec and the official AP protocol
    "faster-coco-eval>=1.6,<2",  # the same protocol, fast
    "jaxtyping>=0.3,<0.4",  # shapes on signatures, checked only in tests
    "jinja2>=3.1,<4",  # the HTML report
    "packaging>=23,<27",  # version checks of `refvlm doctor`
    "rich>=13,<16",  # progress bars and tables
    "tensorboardx>=2.6,<3",  # TensorBoard event files without TensorFlow
    "safetensors>=0.5,<0.9",  # weight interchange without torch
]

DEV = [
    "torch==2.13.0",  # parity tests and the side-by-side benchmark only
    "scipy>=1.13,<2",  # reference assignment solver in tests
    "pytest>=8,<10",
    "pytest-xdist>=3.7,<4",  # two test processes on two cores
    "hypothesis>=6.100,<7",  # property tests
    "tensorflow-datasets>=4.9.7,<5",  # reads exported data in tests; needs no TensorFlow
    "beartype>=0.20,<1",  # runtime side of jaxtyping in tests
    "ruff>=0.9,<1",
    "mypy>=1.14,<3",
    "types-PyYAML",
]

JPEG = [
    "simplejpeg>=1.8,<2",  # faster decoding of JPEG pictures (data.jpeg)
]

setup(
    name="refvlm_jax",
    version="0.1.0",
    description="Train vision-language models that answer with text, boxes and masks, on any JAX mesh",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["refvlm_jax*", "data_pipelines*", "configs*"]),
    package_data={
        "data_pipelines": ["assets/**/*", "templates/*.txt", "recipes/*.toml"],
        "configs": ["mixtures/*.toml"],
        "refvlm_jax": ["py.typed", "**/*.css", "**/*.html", "**/*.j2", "**/*.toml"],
    },
    install_requires=REQUIRES,
    extras_require={"dev": DEV, "jpeg": JPEG, "tpu": ["jax[tpu]"], "gpu": ["jax[cuda12]"]},
    entry_points={"console_scripts": ["refvlm=refvlm_jax.cli.main:main"]},
)
