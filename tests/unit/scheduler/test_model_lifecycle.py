"""What a model's config.pbtxt says of its replicas, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.model_lifecycle import UNSAID, ModelLifecycle, parse_lifecycle

FOREIGN = 'backend: "python" input [{ name: "x" data_type: TYPE_INT32 dims: [1] }]\n'


def test_what_nobody_says_is_left_to_the_scheduler() -> None:
    assert parse_lifecycle({}) == UNSAID


def test_every_parameter_is_read() -> None:
    said = {"keep_alive_s": "0.5", "min_replicas": "1", "max_replicas": "2", "priority": "3", "pinned": "true"}
    expected = ModelLifecycle(keep_alive_s=0.5, min_replicas=1, max_replicas=2, priority=3, pinned=True)
    assert parse_lifecycle(said) == expected


@pytest.mark.parametrize("word", ["adaptive", "never"])
def test_a_keep_alive_may_be_a_word(word: str) -> None:
    assert parse_lifecycle({"keep_alive_s": word}).keep_alive_s == word


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"keep_alive_s": "60s"}, r"parameters.keep_alive_s is '60s'; use seconds, as 60 or 0.5"),
        ({"keep_alive_s": "-1"}, r"parameters.keep_alive_s is '-1'"),
        ({"keep_alive_s": "nan"}, r"parameters.keep_alive_s is 'nan'"),
        ({"min_replicas": "1.5"}, r"parameters.min_replicas is '1.5'; use a whole number from 0"),
        ({"max_replicas": "0"}, r"parameters.max_replicas is '0'; use a whole number from 1"),
        ({"priority": "high"}, r"parameters.priority is 'high'; use a whole number"),
        ({"pinned": "yes"}, r"parameters.pinned is 'yes'; use true or false"),
        (
            {"min_replicas": "3", "max_replicas": "2"},
            r"min_replicas is 3, more than max_replicas, which is 2",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_path(said: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_lifecycle(said)


def put(repository: Path, parameters: str) -> None:
    (repository / "m" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "m" / "config.pbtxt").write_text(FOREIGN + parameters)


def test_a_change_of_it_is_no_other_definition_and_no_server_sees_it(tmp_path: Path) -> None:
    put(tmp_path, 'parameters { key: "mine" value { string_value: "1" } }')
    catalogue = Catalogue(tmp_path)
    before = catalogue.entry("m")
    put(
        tmp_path,
        'parameters { key: "mine" value { string_value: "1" } }\n'
        'parameters { key: "keep_alive_s" value { string_value: "60" } }',
    )
    after = catalogue.entry("m")
    assert after.lifecycle.keep_alive_s == 60.0
    assert after.definition == before.definition
    assert list(after.repository_config.parameters) == ["mine"]


def test_a_model_that_says_it_wrongly_is_broken_and_says_why(tmp_path: Path) -> None:
    put(tmp_path, 'parameters { key: "keep_alive_s" value { string_value: "1 minute" } }')
    (broken,) = Catalogue(tmp_path).broken()
    assert "parameters.keep_alive_s is '1 minute'" in broken.reason
