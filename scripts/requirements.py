"""Prints requirements from pyproject.toml, one a line: `requirements.py [EXTRA ...]`; `-` stands for the base ones."""

import pathlib
import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PYPROJECT = pathlib.Path(__file__).parent.parent / "pyproject.toml"


def main(names: list[str]) -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    for name in names:
        requirements = project["dependencies"] if name == "-" else project["optional-dependencies"][name]
        print(*requirements, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
