"""Adding models: what stands in the repository afterwards, and what is refused."""

import json
import threading
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from safetensors.torch import save_file
from tritonclient.grpc import model_config_pb2

from serverless_triton.backend.errors import (
    InvalidModelConfig,
    InvalidModelName,
    ModelExists,
    ModelRefused,
    UnsupportedSource,
)
from serverless_triton.backend.messages import ModelSpec
from serverless_triton.backend.model_repository import (
    EngineLimits,
    add_model,
    add_version,
    kv_bytes_per_token,
    read_parameters,
)
from serverless_triton.loader import CheckpointNotFound, RemoteUrlRefused

LLAMA = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "dtype": "bfloat16",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    save_file({"weight": torch.zeros(4, 4, dtype=torch.bfloat16)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def config_of(folder: Path):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_model_is_complete_for_a_server_that_does_not_complete_configurations(checkpoint: Path, repository: Path):
    folder = add_model(repository, "small", checkpoint)

    config = config_of(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("small", "serverless", 0)
    assert config.model_transaction_policy.decoupled
    assert [(group.kind, group.count) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    ]
    assert all(tensor.optional for tensor in config.input)
    assert {"text_input", "input_ids", "resume_token_ids"} <= {tensor.name for tensor in config.input}
    assert {"text_output", "output_ids", "prompt_ids", "attempt", "first_position"} <= {t.name for t in config.output}
    assert list((folder / "1").iterdir()) == []


def test_its_parameters_are_a_specification_that_the_backend_reads_back(checkpoint: Path, repository: Path):
    limits = EngineLimits(dtype="float32", max_sequence_tokens=100, max_streams=3, threads=2)
    add_model(repository, "small", checkpoint, limits=limits)

    (parameters,) = read_parameters(repository)

    assert ModelSpec.parse(parameters) == ModelSpec(
        checkpoint=str(checkpoint),
        checkpoint_bytes=(checkpoint / "model.safetensors").stat().st_size,
        kv_cache_bytes=2 * 3 * 2 * 8 * 4 * 100 * 3,
        converted_bytes=16 * 4,
        dtype="float32",
        max_sequence_tokens=100,
        max_streams=3,
        threads=2,
    )


@pytest.mark.parametrize(
    ("limits", "converted_bytes"),
    [
        (EngineLimits(), 0),
        (EngineLimits(dtype="bfloat16"), 0),
        (EngineLimits(dtype="float16"), 16 * 2),
        (EngineLimits(dtype="float32"), 16 * 4),
        (EngineLimits(dtype="float32", engine="fake"), 0),
    ],
)
def test_weights_that_its_engine_has_to_convert_are_memory_that_it_takes(
    limits: EngineLimits, converted_bytes: int, checkpoint: Path, repository: Path
):
    add_model(repository, "small", checkpoint, limits=limits)
    (parameters,) = read_parameters(repository)
    spec = ModelSpec.parse(parameters)
    assert spec.converted_bytes == converted_bytes
    assert spec.device_bytes == spec.kv_cache_bytes + converted_bytes


@pytest.mark.parametrize(("configured", "converted_bytes"), [("float32", "64"), (None, None)])
def test_what_auto_means_is_the_configs_and_else_as_it_is_stored(
    configured: str | None, converted_bytes: str | None, checkpoint: Path, repository: Path
):
    (checkpoint / "config.json").write_text(json.dumps({**LLAMA, "dtype": configured}))
    add_model(repository, "small", checkpoint)
    (parameters,) = read_parameters(repository)
    assert parameters.get("converted_bytes") == converted_bytes


def test_an_engines_own_options_come_along(checkpoint: Path, repository: Path):
    add_model(repository, "fake", checkpoint, limits=EngineLimits(engine="fake", engine_options='{"load_s": 2}'))
    (parameters,) = read_parameters(repository)
    assert ModelSpec.parse(parameters).options == {"load_s": 2}


@pytest.mark.parametrize("name", ["", "a/b", "..", "a..b", ".hidden", "-dash", "a b", "ä", "a\n", "x" * 129])
def test_a_name_that_could_leave_the_repository_is_refused(name: str, checkpoint: Path, repository: Path):
    with pytest.raises(InvalidModelName):
        add_model(repository, name, checkpoint)
    assert not repository.exists()


@pytest.mark.parametrize("name", ["a", "_", "SmolLM2-135M.v1", "x" * 128])
def test_a_plain_name_is_taken(name: str, checkpoint: Path, repository: Path):
    assert add_model(repository, name, checkpoint).name == name


@pytest.mark.parametrize("source", ["ftp://host/model", "https://user:secret@host/model", "http://example.com/model"])
def test_a_url_that_cannot_be_loaded_is_refused(source: str, repository: Path):
    with pytest.raises(RemoteUrlRefused):
        add_model(repository, "small", source)
    assert not repository.exists()


def test_a_file_url_is_the_local_directory(checkpoint: Path, repository: Path):
    parameters = config_of(add_model(repository, "small", f"file://{checkpoint}")).parameters
    assert parameters["checkpoint"].string_value == str(checkpoint)
    assert "files" not in parameters


def test_a_folder_without_a_checkpoint_is_refused_with_its_path(tmp_path: Path, repository: Path):
    with pytest.raises(UnsupportedSource, match="nowhere is no directory"):
        add_model(repository, "small", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFound, match="empty"):
        add_model(repository, "small", tmp_path / "empty")


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps(LLAMA | {"hidden_size": "32"}), '{"dtype": "int3"}'])
def test_a_config_that_says_nothing_usable_is_refused(content: str, checkpoint: Path, repository: Path):
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(InvalidModelConfig, match=r"config\.json"):
        add_model(repository, "small", checkpoint)
    assert not repository.exists()


def test_a_model_is_not_overwritten_unless_asked(checkpoint: Path, repository: Path):
    add_model(repository, "small", checkpoint)

    with pytest.raises(ModelExists, match="--replace"):
        add_model(repository, "small", checkpoint, limits=EngineLimits(threads=7))
    assert config_of(repository / "small").parameters["threads"].string_value == "1"

    add_model(repository, "small", checkpoint, limits=EngineLimits(threads=7), replace=True)
    assert config_of(repository / "small").parameters["threads"].string_value == "7"


def test_of_two_who_add_the_same_name_at_once_one_is_told(checkpoint: Path, repository: Path):
    outcomes: list[str] = []

    def add() -> None:
        try:
            add_model(repository, "small", checkpoint)
            outcomes.append("added")
        except ModelExists:
            outcomes.append("refused")

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["added"] + ["refused"] * 7
    assert [path.name for path in repository.iterdir()] == ["small"]
    assert not list(repository.parent.glob(".serverless-triton-*"))


def test_a_model_of_another_backend_or_a_broken_one_is_left_out_when_reading(
    checkpoint: Path, repository: Path, caplog: pytest.LogCaptureFixture
):
    add_model(repository, "ours", checkpoint)
    for name, text in (("theirs", 'backend: "python"'), ("broken", "back end:")):
        (repository / name).mkdir()
        (repository / name / "config.pbtxt").write_text(text)

    assert len(read_parameters(repository)) == 1
    assert "model=broken" in caplog.text


@pytest.mark.parametrize("parameters", ["", 'parameters { key: "checkpoint" value { string_value: "/a" } }'])
def test_a_model_of_ours_without_what_a_load_needs_is_left_out_when_reading(
    parameters: str, checkpoint: Path, repository: Path, caplog: pytest.LogCaptureFixture
):
    add_model(repository, "ours", checkpoint)
    (repository / "bare").mkdir()
    (repository / "bare" / "config.pbtxt").write_text(f'backend: "serverless"\n{parameters}')

    assert len(read_parameters(repository)) == 1
    assert "model=bare error=parameters.checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA, 2 * 3 * 2 * 8 * 2),
        (LLAMA | {"head_dim": 64}, 2 * 3 * 2 * 64 * 2),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 2 * 12 * 768 * 4),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768, "torch_dtype": "float16"}, 2 * 12 * 768 * 2),
    ],
)
def test_key_and_value_bytes_follow_the_architecture(config: dict[str, object], expected: int):
    assert kv_bytes_per_token(config) == expected


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(InvalidModelConfig, match="max_streams is 0"):
        EngineLimits(max_streams=0)
    with pytest.raises(ModelRefused, match="float32"):
        EngineLimits(dtype="int8")
    with pytest.raises(InvalidModelConfig, match="engine_options must be a JSON object"):
        EngineLimits(engine_options="[]")


def test_the_example_in_the_repository_is_what_add_writes(checkpoint: Path, repository: Path):
    example = Path(__file__).parents[3] / "model_repository" / "smollm2-135m-instruct"
    written = config_of(add_model(repository, example.name, checkpoint))
    shown = config_of(example)
    for parameter in ("checkpoint", "checkpoint_bytes", "kv_cache_bytes"):  # those of the model it shows
        written.parameters[parameter].string_value = shown.parameters[parameter].string_value
    assert shown == written


def test_another_version_has_parameters_of_its_own(checkpoint: Path, repository: Path):
    folder = add_model(repository, "small", checkpoint)
    before = (folder / "config.pbtxt").read_bytes()

    version = add_version(repository, "small", 2, checkpoint, limits=EngineLimits(max_streams=3))

    assert version == folder / "2"
    assert ModelSpec.parse(json.loads((version / "model.json").read_text())).max_streams == 3
    assert (folder / "config.pbtxt").read_bytes() == before


def test_a_version_of_a_model_that_is_not_there_is_refused(checkpoint: Path, repository: Path):
    with pytest.raises(InvalidModelConfig, match="add it without --version first"):
        add_version(repository, "small", 2, checkpoint)


def test_a_version_that_is_there_is_left_as_it_is(checkpoint: Path, repository: Path):
    add_model(repository, "small", checkpoint)
    with pytest.raises(ModelExists, match="version 1 of model 'small'"):
        add_version(repository, "small", 1, checkpoint)
