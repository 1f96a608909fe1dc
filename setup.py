"""Packaging of yolof_d2. Tool settings are in pyproject.toml, tested versions in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return ``__version__`` of the package without importing it (importing needs torch)."""
    init = ROOT / "yolof_d2" / "__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"$', init.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f'{init} must contain a line like: __version__ = "0.1.0"')
    return found.group(1)


def read_readme() -> str:
    """Return the README as long description, or an empty text where it is not shipped."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


# The ranges are what the code should work with. requirements/constraints.txt pins what it is
# tested with, one exact set per Python version; `make` installs that set.
INSTALL_REQUIRES = [
    # Not on the package index: requirements/install_detectron2.py installs it first.
    "detectron2>=0.6",
    # Tested with 2.12.1 only. Each torchvision requires one exact torch, so pip picks a matching
    # pair, unless a torch without a matching torchvision (CPU-only) is preferred.
    "torch>=2.4",
    "torchvision>=0.19",
    "faster-coco-eval>=1.6",
    "filelock>=3.12",
    "fvcore>=0.1.5.post20221221,<0.1.6",
    "iopath>=0.1.7",
    "jinja2>=3",
    "markupsafe>=2",
    "matplotlib>=3.7",
    "numpy>=1.26",
    "pillow>=10",
    "pycocotools>=2.0.8",  # first release that supports NumPy 2
    "pydantic>=2.7",
    "pyyaml>=6",
    "scipy>=1.11",
    "setuptools<81",  # detectron2.model_zoo imports pkg_resources, removed later
    "submitit>=1.5",
    "tabulate>=0.9",
    "tensorboard",
    "wandb>=0.28.2",
    "wandb-workspaces>=0.4.13,<0.5",  # a public preview: its interface may change
    "yacs>=0.1.8",
]

DEV_REQUIRES = [
    "hypothesis",
    "mypy",
    "pre-commit",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff",
    "timm>=1.0.31",  # first release whose Swin takes any image size by ViT's option
    "types-PyYAML",
    "types-tabulate",
]

setup(
    name="yolof_d2",
    version=read_version(),
    description="YOLOF on Detectron2: a one-level object detector made for ablation studies",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="the yolof_d2 authors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["yolof_d2", "yolof_d2.*", "experiments", "experiments.*"]),
    package_data={
        "yolof_d2": ["py.typed"],
        "experiments": ["clusters/*.yaml", "report/templates/*.html", "sweeps/*.yaml"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "dev": DEV_REQUIRES,
        "timm": [line for line in DEV_REQUIRES if line.startswith("timm")],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    zip_safe=False,
)
