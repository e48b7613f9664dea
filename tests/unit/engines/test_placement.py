"""Models on several devices say what they say on one. There is no GPU here: the devices are emulated, strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from serverless_triton.backend.device_map import Share
from serverless_triton.backend.engines.protocol import GenerationRequest, ModelNotSupported
from serverless_triton.backend.engines.torch.placement import Placement
from serverless_triton.backend.engines.torch.skeleton import Skeleton
from tests.unit.engines.emulated_devices import EmulatedDevices

PROMPTS = [[5, 9, 17, 200], [3], list(range(40, 75)), [99, 98, 97]]


def shares(*parts: int) -> tuple[Share, ...]:
    return tuple(Share(device=f"xpu:{number}", parts=count, bytes=0) for number, count in enumerate(parts))


@pytest.fixture
def devices() -> Iterator[EmulatedDevices]:
    with EmulatedDevices() as emulated:
        yield emulated


def ask(request: int, prompt: list[int]) -> GenerationRequest:
    return GenerationRequest(request=request, input_ids=prompt, sampling_parameters={"max_tokens": 16})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llama", (2, 4)),  # a tied head is where the embedding is
        ("llama", (3, 1, 2)),
        ("llama-untied", (3, 3)),
        ("llama-untied", (1, 1, 1, 1, 1, 1)),
        ("qwen2", (2, 4)),
        ("qwen3", (4, 2)),
        ("gpt2", (2, 3)),
        ("opt", (2, 1, 2)),
    ],
)
def test_greedy_tokens_across_devices_are_those_of_generate(
    checkpoint: Any, drive: Callable[..., Any], name: str, parts: tuple[int, ...]
) -> None:
    model = checkpoint(name)
    expected = [model.generate(prompt, 16) for prompt in PROMPTS]
    with EmulatedDevices() as devices:
        engine = model.build(shares=shares(*parts), step_tokens=9)
        answers = drive(engine, [ask(i, prompt) for i, prompt in enumerate(PROMPTS)])
    assert [answers[i].ids for i in range(len(PROMPTS))] == expected
    assert {f"xpu:{number}" for number in range(len(parts))} <= devices.computed.keys()


def test_hidden_states_cross_once_a_boundary_and_step(
    checkpoint: Any, drive: Callable[..., Any], devices: EmulatedDevices
) -> None:
    engine = checkpoint("llama-untied").build(shares=shares(2, 4))
    devices.crossed.clear()
    engine.submit(ask(1, [1, 2, 3]))
    engine.step()
    # The hidden states, cosines and sines of the rotary embedding, and the positions that every layer is handed; two
    # empty indices of the decoding streams.
    assert devices.crossed["xpu:0", "xpu:1"] <= 6
    assert devices.crossed["xpu:1", "xpu:0"] == 0


def test_exact_mode_works_across_devices(checkpoint: Any, drive: Callable[..., Any]) -> None:
    model = checkpoint("llama")
    alone = drive(model.build(mode="exact"), [ask(1, PROMPTS[2])])
    with EmulatedDevices():
        spanning = drive(model.build(mode="exact", shares=shares(2, 2, 2)), [ask(1, PROMPTS[2])])
    assert spanning[1].ids == alone[1].ids


def test_another_split_is_another_contract(checkpoint: Any, devices: EmulatedDevices) -> None:
    model = checkpoint("llama")
    splits = [shares(2, 4), shares(3, 3), shares(6)]
    contracts = [model.build(mode="exact", shares=split).exactness.contract for split in splits]
    assert len({*contracts, model.build(mode="exact", shares=shares(2, 4)).exactness.contract}) == 3


def test_a_weight_is_converted_on_its_way_to_its_device(checkpoint: Any, devices: EmulatedDevices) -> None:
    model = checkpoint("llama")
    attached = Skeleton(model.path).attach(model.tensors, torch.bfloat16, Placement(shares(2, 4), 3).device_of)
    assert {parameter.dtype for parameter in attached.parameters()} == {torch.bfloat16}
    assert {str(parameter.device) for parameter in attached.parameters()} == {"xpu:0", "xpu:1"}
    assert devices.converted_there == 0


def test_memory_that_building_on_a_device_took_is_given_back(
    checkpoint: Any, devices: EmulatedDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(devices.crossed.total()))
    checkpoint("llama").build(shares=shares(2, 4))
    (crossed,) = given_back
    assert crossed == devices.crossed.total()


def test_a_single_share_puts_all_of_a_model_on_its_device(
    checkpoint: Any, drive: Callable[..., Any], devices: EmulatedDevices
) -> None:
    model = checkpoint("llama")
    answers = drive(model.build(shares=shares(1)), [ask(1, [5, 9])])
    assert answers[1].ids
    assert set(devices.computed) <= {"cpu", "xpu:0", "meta"}


def test_kv_memory_of_a_slot_is_cleared_on_every_device(
    checkpoint: Any, drive: Callable[..., Any], devices: EmulatedDevices
) -> None:
    engine = checkpoint("llama").build(shares=shares(2, 4))
    drive(engine, [ask(1, [5, 9, 17])])
    engine.step()
    layers = engine._model.kv_memory.layers
    assert len(layers) == 3
    assert all(not keys.any() and not values.any() for keys, values in layers)


def test_a_map_of_another_number_of_parts_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="7 parts was made for this model of 3 layers, which has 6"):
        Placement(shares(3, 4), layers=3)


def test_devices_of_several_kinds_are_refused() -> None:
    mixed = (Share(device="cpu", parts=3, bytes=0), Share(device="cuda:0", parts=3, bytes=0))
    with pytest.raises(ModelNotSupported, match="devices of one kind, not cpu, cuda:0"):
        Placement(mixed, layers=3)


def test_layers_are_counted_by_device() -> None:
    placement = Placement(shares(2, 3, 1), layers=3)
    assert [(str(device), count) for device, count in placement.layer_runs()] == [("xpu:0", 1), ("xpu:1", 2)]
    assert [(str(device), count) for device, count in placement.runs()] == [("xpu:0", 2), ("xpu:1", 3), ("xpu:2", 1)]
    assert (str(placement.home), str(placement.end)) == ("xpu:0", "xpu:1")
