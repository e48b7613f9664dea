"""The OpenAPI document says what there is, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serverless_triton.scheduler.admission import FakeAdmission
from serverless_triton.scheduler.gateway import openapi
from serverless_triton.scheduler.gateway.fake_upstream import FakeUpstream
from serverless_triton.scheduler.gateway.gateway import Gateway
from serverless_triton.scheduler.gateway.metrics import metrics_app
from serverless_triton.scheduler.gateway.openai.errors import InvalidParameter
from serverless_triton.scheduler.gateway.openai.requests import MOST_CHOICES, read_chat, read_completion
from serverless_triton.scheduler.gateway.openapi import document
from serverless_triton.scheduler.gateway.settings import GatewaySettings
from serverless_triton.scheduler.gateway.tensors import ELEMENT_BYTES

METHODS = {"get", "post", "put", "delete"}


def routes(*apps: Any) -> set[tuple[str, str]]:
    """Method and path of every route, a wildcard's as the methods that a client would try."""
    found = set()
    for app in apps:
        for route in app.router.routes():
            path = re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", route.resource.canonical)
            methods = ("get", "post") if route.method == "*" else (route.method.lower(),)
            found |= {(method, path) for method in methods if method != "head"}
    return found


async def test_every_route_is_in_it_and_nothing_else(catalogue):
    gateway = Gateway(
        catalogue=catalogue, admission=FakeAdmission(), upstream=FakeUpstream(), settings=GatewaySettings(http_port=0)
    )
    documented = {(method, path) for path, item in document()["paths"].items() for method in item.keys() & METHODS}
    assert documented == routes(gateway.http_app, metrics_app(gateway.metrics.registry))


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def resolved(reference: str) -> Any:
    found: Any = document()
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_every_reference_leads_somewhere_and_every_component_is_referred_to():
    references = {node["$ref"] for node in nodes(document()) if isinstance(node.get("$ref"), str)}
    for reference in references:
        assert resolved(reference)
    kinds = document()["components"].items()
    # Security schemes are referred to by their names.
    references |= {f"#/components/securitySchemes/{name}" for scheme in document()["security"] for name in scheme}
    assert references == {f"#/components/{kind}/{name}" for kind, found in kinds for name in found}


def test_every_part_of_a_path_is_a_parameter_of_it():
    for path, item in document()["paths"].items():
        parameters = [resolved(p["$ref"]) if "$ref" in p else p for p in item.get("parameters", ())]
        assert {p["name"] for p in parameters} == set(re.findall(r"\{(\w+)\}", path)), path
        assert all(p["in"] == "path" and p["required"] for p in parameters)


def test_it_is_json():
    assert json.loads(json.dumps(document())) == document()


def test_datatypes_are_those_of_tensors():
    assert set(document()["components"]["schemas"]["Datatype"]["enum"]) == {*ELEMENT_BYTES, "BYTES"}


READERS = {"CompletionRequest": read_completion, "ChatRequest": read_chat}
SMALLEST = {
    "CompletionRequest": {"model": "m", "prompt": "hi"},
    "ChatRequest": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def properties(schema: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["components"]["schemas"][schema]["properties"]
    return found


@pytest.mark.parametrize("schema", READERS)
def test_every_member_in_it_is_known_to_the_reader(schema: str):
    for name in properties(schema).keys() - SMALLEST[schema].keys():
        READERS[schema](json.dumps({**SMALLEST[schema], name: None}).encode())


@pytest.mark.parametrize("schema", READERS)
def test_every_value_that_asks_for_nothing_is_taken_and_others_are_refused(schema: str):
    for name, member in properties(schema).items():
        for value in member.get("enum", ()):
            READERS[schema](json.dumps({**SMALLEST[schema], name: value}).encode())
        if "enum" in member or member.get("type") == "null":
            with pytest.raises(InvalidParameter, match="not supported"):
                READERS[schema](json.dumps({**SMALLEST[schema], name: "other"}).encode())


@pytest.mark.parametrize("schema", READERS)
def test_bounds_of_numbers_are_the_readers(schema: str):
    for name, member in properties(schema).items():
        for bound in {"minimum", "maximum"} & member.keys():
            body = {**SMALLEST[schema], name: member[bound]}
            READERS[schema](json.dumps(body).encode())
            beyond = member[bound] + (1 if bound == "maximum" else -1)
            with pytest.raises(InvalidParameter):
                READERS[schema](json.dumps({**body, name: beyond}).encode())


def test_a_member_that_is_not_in_it_is_refused():
    with pytest.raises(InvalidParameter, match="Unrecognized"):
        read_completion(json.dumps({**SMALLEST["CompletionRequest"], "other": 1}).encode())


def test_the_number_of_choices_is_the_readers():
    assert properties("CompletionRequest")["n"]["maximum"] == MOST_CHOICES


def test_no_key_stands_twice_in_the_file():
    """YAML would take the last one without a word."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> Any:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        assert len(set(keys)) == len(keys), f"{keys} at {node.start_mark}"
        return yaml.SafeLoader.construct_yaml_map(loader, node)

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    yaml.load(Path(openapi.__file__).with_suffix(".yaml").read_text(), Strict)
