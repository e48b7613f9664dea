"""The OpenAPI document of everything that the gateway serves over HTTP, read from openapi.yaml beside this module."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_MODEL = "/v2/models/{model}"
_UNVERSIONED = (f"{_MODEL}/trace/setting",)
_VERSION = {"$ref": "#/components/parameters/version"}
_NO_PATH = {"$ref": "#/components/responses/TritonError"}


@cache
def document() -> dict[str, Any]:
    """Not to be changed. What a model has, its versions have too."""
    written: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    paths = written["paths"]
    _add_refusals(paths)
    of_models = {path: item for path, item in paths.items() if path.startswith(_MODEL) and path not in _UNVERSIONED}
    for path, item in of_models.items():
        paths[path.replace(_MODEL, f"{_MODEL}/versions/{{version}}")] = _versioned(item)
    return written


def _versioned(item: dict[str, Any]) -> dict[str, Any]:
    """The same of a version. One that is no number is no path."""
    operations: dict[str, Any] = {
        method: {**item[method], "responses": {"404": _NO_PATH, **item[method]["responses"]}}
        for method in ("get", "post")
        if method in item
    }
    return {**item, **operations, "parameters": [*item["parameters"], _VERSION]}


def _add_refusals(paths: dict[str, Any]) -> None:
    """Every call that needs a key may be refused for it, in the shape of its API's errors."""
    for path, item in paths.items():
        shape = "OpenAIError" if path.startswith("/v1/") else "TritonError"
        for operation in (item[method] for method in ("get", "post") if method in item):
            if operation.get("security") != []:
                operation["responses"]["401"] = {"$ref": f"#/components/responses/{shape}"}
