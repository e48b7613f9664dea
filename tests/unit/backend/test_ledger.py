"""Grants of device memory: never more than there is, and on several devices all or none."""

from __future__ import annotations

import pytest

from serverless_triton.backend.devices import Devices, device_names
from serverless_triton.backend.ledger import DeviceLedger, DeviceLedgers, NoRoom
from serverless_triton.backend.messages import ModelSpec

SPEC = ModelSpec(checkpoint="/models/a", checkpoint_bytes=10, kv_cache_bytes=60)


def test_a_ledger_never_grants_more_than_there_is() -> None:
    ledger = DeviceLedger(10)
    ledger.grant("a", 6)
    ledger.grant("a", 6)
    with pytest.raises(NoRoom):
        ledger.grant("b", 5)
    ledger.give_back("a")
    ledger.give_back("a")
    ledger.grant("b", 10)
    assert ledger.granted_bytes == 10


def test_what_ending_holders_have_is_as_good_as_free() -> None:
    ledger = DeviceLedger(10)
    ledger.grant("a", 6)
    ledger.grant("b", 3)
    assert (ledger.free_bytes(), ledger.free_bytes(["a", "unknown"])) == (1, 7)


def test_several_holders_share_a_device() -> None:
    ledgers = DeviceLedgers({"gpu0": 10})
    for holder in ("a", "b", "c"):
        ledgers.grant(holder, {"gpu0": 3})
    assert ledgers.free_bytes() == {"gpu0": 1}


def test_a_grant_on_several_devices_is_all_or_nothing() -> None:
    ledgers = DeviceLedgers({"gpu0": 10, "gpu1": 10})
    ledgers.grant("a", {"gpu1": 6})
    with pytest.raises(NoRoom, match="5 bytes of gpu1's memory asked for, 4 are free"):
        ledgers.grant("b", {"gpu0": 8, "gpu1": 5})
    assert ledgers.free_bytes() == {"gpu0": 10, "gpu1": 4}


def test_what_a_holder_has_on_all_devices_is_given_back_together() -> None:
    ledgers = DeviceLedgers({"gpu0": 10, "gpu1": 10})
    ledgers.grant("a", {"gpu0": 8, "gpu1": 5})
    ledgers.give_back("a")
    assert ledgers.granted_bytes == 0


def test_what_outlived_the_ledger_counts_even_on_a_device_that_has_no_budget_any_more() -> None:
    ledgers = DeviceLedgers({"gpu0": 10})
    ledgers.adopt("a", {"gpu0": 12, "gpu7": 5})
    assert (ledgers.granted_bytes, ledgers.budget_bytes, ledgers.free_bytes()) == (17, 10, {"gpu0": 0, "gpu7": 0})


def test_on_a_cpu_a_replica_needs_its_kv_memory_alone() -> None:
    assert Devices({"cpu": 100}).parts(SPEC) == [60]


def test_a_model_that_no_device_holds_alone_is_granted_shares_of_several() -> None:
    devices = Devices({"cuda:0": 10, "cuda:1": 10}, parts_of=lambda _: [4, 6, 6])
    shares = devices.grant("a", devices.parts(SPEC))
    assert [(one.device, one.parts, one.bytes) for one in shares] == [("cuda:0", 2, 10), ("cuda:1", 1, 6)]
    with pytest.raises(NoRoom):
        devices.grant("b", [5])
    devices.check([5], ending=["a"])
    assert devices.granted_bytes == 16


def test_an_adopted_replica_counts_by_its_size_until_its_shares_are_known() -> None:
    devices = Devices({"cuda:0": 10, "cuda:1": 10}, parts_of=lambda _: [4, 6, 6])
    devices.adopt("a", [], 16)
    assert devices.granted_bytes == 16
    devices.adopt("a", Devices({"cuda:0": 10, "cuda:1": 10}).grant("a", [4, 6, 6]), 16)
    devices.grant("b", [4])
    assert devices.granted_bytes == 20


@pytest.mark.parametrize("text", ["", "cpu,cuda:0", "gpu", "cuda:0,cuda:0", "cuda:0,", "cuda"])
def test_names_that_are_no_devices_of_a_node_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="devices are"):
        device_names(text)


def test_a_node_has_its_cpu_or_gpus() -> None:
    assert (device_names("cpu"), device_names("cuda:0,cuda:1")) == (("cpu",), ("cuda:0", "cuda:1"))
