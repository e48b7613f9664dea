"""What the repository on disk becomes, and when it changes."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from serverless_triton.scheduler.catalogue import Catalogue
from serverless_triton.scheduler.errors import InvalidModelName, InvalidRequest, UnknownModel
from tests.unit.gateway.samples import CONFIG, add_model


def test_entry_of_a_serverless_model(catalogue):
    entry = catalogue.entry("m")
    assert entry.versions == ("1",)
    assert entry.spec.checkpoint == "/checkpoints/m"
    assert entry.served() is entry.spec
    assert entry.backend == "serverless"


def test_metadata_has_what_clients_may_send(catalogue):
    metadata = catalogue.entry("m").metadata()
    assert metadata.name == "m"
    assert metadata.platform == "serverless"
    shapes = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    assert shapes["text_input"] == ("BYTES", [1])
    assert shapes["input_ids"] == ("INT32", [-1])
    assert "resume_token_ids" not in shapes
    assert {"attempt", "first_position"}.isdisjoint(tensor.name for tensor in metadata.outputs)


def test_servers_get_the_configuration_as_it_stands(catalogue):
    config = catalogue.entry("m").repository_config
    assert "resume_token_ids" in [tensor.name for tensor in config.input]
    assert not config.HasField("optimization")


@pytest.mark.parametrize(
    "name", ["..", "../m", "a/b", "a\\b", ".hidden", "-x", "a..b", "a b", "a\n", "ü", "a" * 129, "\0"]
)
def test_names_that_are_no_directory_of_the_repository(catalogue, name):
    with pytest.raises(InvalidModelName):
        catalogue.entry(name)


def test_unknown_model_in_tritons_words(catalogue):
    with pytest.raises(UnknownModel, match=r"^Request for unknown model: 'nope' is not found$"):
        catalogue.entry("nope")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("name: {", "config.pbtxt: 1:"),
        ("nonsense: 1", "nonsense"),
        ('name: "other"', "its directory is 'bad'"),
        (CONFIG.replace("decoupled: true", "decoupled: false"), "decoupled"),
        (CONFIG.replace("max_batch_size: 0", "max_batch_size: 4"), "max_batch_size: 0"),
        (CONFIG.replace('"kv_cache_bytes"', '"kv_cash_bytes"'), "kv_cash_bytes"),
        (CONFIG + "version_policy { specific { versions: [7] } }", "at least one version"),
    ],
)
def test_a_broken_model_says_why_and_leaves_the_others_alone(repository, config, reason):
    add_model(repository, "bad", config)
    catalogue = Catalogue(repository)
    with pytest.raises(UnknownModel, match=r"^Request for unknown model: 'bad' is not found") as caught:
        catalogue.entry("bad")
    assert reason in str(caught.value)
    assert [entry.name for entry in catalogue.entries()] == ["m"]
    assert [broken.name for broken in catalogue.broken()] == ["bad"]


def test_bytes_that_are_no_text_are_a_broken_model(repository):
    (add_model(repository, "bad") / "config.pbtxt").write_bytes(b"\xff\xfe")
    assert [broken.name for broken in Catalogue(repository).broken()] == ["bad"]


def test_another_backend_is_described_and_not_served(repository):
    add_model(
        repository,
        "onnx",
        'backend: "onnxruntime" max_batch_size: 8 input [{ name: "x" data_type: TYPE_FP32 dims: [2] }]',
    )
    entry = Catalogue(repository).entry("onnx")
    assert list(entry.metadata().inputs[0].shape) == [-1, 2]
    with pytest.raises(InvalidRequest, match="backend 'onnxruntime'"):
        entry.served()


def test_a_model_that_appears_changes_and_goes_is_noticed(repository, catalogue):
    assert len(catalogue.entries()) == 1
    directory = add_model(repository, "later")
    assert catalogue.entry("later").spec.checkpoint == "/checkpoints/m"
    (directory / "config.pbtxt").write_text(CONFIG.replace("/checkpoints/m", "/checkpoints/other"))
    assert catalogue.entry("later").spec.checkpoint == "/checkpoints/other"
    shutil.rmtree(directory)
    with pytest.raises(UnknownModel):
        catalogue.entry("later")
    assert [entry.name for entry in catalogue.entries()] == ["m"]


def test_an_unchanged_model_is_parsed_once(catalogue):
    assert catalogue.entry("m") is catalogue.entry("m")


def test_a_new_version_is_noticed_and_the_latest_is_served(repository, catalogue):
    assert catalogue.entry("m").versions == ("1",)
    (repository / "m" / "12").mkdir()
    (repository / "m" / "not-a-version").mkdir()
    os.utime(repository / "m", ns=(1, 1))
    assert catalogue.entry("m").versions == ("12",)


def test_all_versions_by_policy(repository):
    directory = add_model(repository, "all", CONFIG + "version_policy { all {} }")
    (directory / "2").mkdir()
    entry = Catalogue(repository).entry("all")
    assert entry.versions == ("1", "2")
    assert [entry.version(asked) for asked in ("", "1", "2")] == ["2", "1", "2"]


VERSION_2 = {"checkpoint": "/checkpoints/two", "checkpoint_bytes": "7", "kv_cache_bytes": "8", "max_streams": "3"}


@pytest.fixture
def both(repository):
    """A model whose version 2 has parameters of its own; both are served."""
    directory = add_model(repository, "both", CONFIG + "version_policy { all {} }")
    (directory / "2").mkdir()
    (directory / "2" / "model.json").write_text(json.dumps(VERSION_2))
    return directory


def test_a_versions_own_parameters_stand_in_place_of_the_models(catalogue, both):
    versions = catalogue.entry("both").by_version
    assert versions["1"].spec.checkpoint == "/checkpoints/m"
    assert versions["2"].parameters == VERSION_2
    assert catalogue.entry("both").spec == versions["2"].spec


def test_a_server_loads_one_version_with_its_own_parameters(catalogue, both):
    entry = catalogue.entry("both")
    for version, checkpoint in (("1", "/checkpoints/m"), ("2", "/checkpoints/two")):
        config = entry.config_for(entry.by_version[version].definition)
        assert list(config.version_policy.specific.versions) == [int(version)]
        assert config.parameters["checkpoint"].string_value == checkpoint


def test_a_version_is_no_other_one_because_of_its_siblings(catalogue, both):
    before = catalogue.entry("both").by_version
    (both / "config.pbtxt").write_text(CONFIG)
    (both / "2" / "model.json").write_text(json.dumps({**VERSION_2, "max_streams": "4"}))
    after = catalogue.entry("both").by_version
    assert list(after) == ["2"]
    assert after["2"].definition != before["2"].definition
    (both / "config.pbtxt").write_text(CONFIG + "version_policy { all {} }\n")
    assert catalogue.entry("both").by_version["1"].definition == before["1"].definition


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "2/model.json"),
        ('{"max_streams": 3}', "2/model.json: max_streams must be a string"),
        ('{"max_streems": "3"}', "max_streems"),
        ("{}", "parameters.checkpoint is missing"),
        (" " * 2_000_000, "2/model.json is longer than"),
    ],
)
def test_wrong_parameters_of_a_version_break_the_model_and_say_where(catalogue, both, text, reason):
    (both / "2" / "model.json").write_text(text)
    with pytest.raises(UnknownModel) as caught:
        catalogue.entry("both")
    assert reason in str(caught.value)


def test_an_empty_name_is_nobodys(catalogue):
    with pytest.raises(UnknownModel, match=r"^Request for unknown model: '' is not found$"):
        catalogue.entry("")


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ("7", UnknownModel, "Request for unknown model: 'm' version 7 is not found"),
        ("0", UnknownModel, "Request for unknown model: 'm' version 0 is not found"),
        ("x", InvalidRequest, "failed to get model version from specified version string 'x'"),
        ("9" * 5000, InvalidRequest, "failed to get model version from specified version string '9999"),
        ("0" * 5000, InvalidRequest, "failed to get model version from specified version string '0000"),
        (str(2**63), InvalidRequest, "failed to get model version from specified version string '9223"),
        ("٣", InvalidRequest, "failed to get model version"),
        ("-1", InvalidRequest, "integral value > 0"),
        ("9" * 40, InvalidRequest, "integral value > 0"),
    ],
)
def test_versions_that_are_not_there(catalogue, asked, error, words):
    with pytest.raises(error) as caught:
        catalogue.entry("m").version(asked)
    assert words in str(caught.value)


def test_tensors_of_another_backend_are_all_its_clients_to_see(repository):
    output = 'output [{ name: "attempt" data_type: TYPE_INT32 dims: [1] }]'
    add_model(repository, "other", f'backend: "python" {output}')
    (shown,) = Catalogue(repository).entry("other").metadata().outputs
    assert shown.name == "attempt"


def test_a_declaration_that_is_no_number_breaks_its_model_with_the_reason(repository):
    wrong = 'parameters { key: "host_memory_bytes" value { string_value: "much" } }'
    add_model(repository, "other", f'backend: "python" {wrong}')
    with pytest.raises(UnknownModel, match="parameter 'host_memory_bytes' is 'much'"):
        Catalogue(repository).entry("other")
