"""Prints requirements from pyproject.toml, one a line: `requirements.py [EXTRA ...]`.

`-` stands for the base ones, `scheduler` for those of a machine that runs no engine.
"""

import pathlib
import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ONLY_FOR_ENGINES = ("jinja2", "safetensors", "torch", "transformers")
PYPROJECT = pathlib.Path(__file__).parent.parent / "pyproject.toml"


def main(names: list[str]) -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    base = project["dependencies"]
    without_engines = [line for line in base if not line.startswith(ONLY_FOR_ENGINES)]
    groups = {"-": base, "scheduler": without_engines, **project["optional-dependencies"]}
    for name in names:
        print(*groups[name], sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
