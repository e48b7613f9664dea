from pathlib import Path
from typing import Any

import pytest

from serverless_triton.loader.estimator import Throttles
from serverless_triton.loader.store_config import StoreConfig, parse_arguments


def test_the_command_line_is_the_configuration() -> None:
    config = parse_arguments(["--socket", "/s", "--dram-bytes", "5", "--ssd-bytes-per-second", "7"])

    assert config == StoreConfig(socket_path=Path("/s"), dram_bytes=5, threads=4, ssd_bytes_per_second=7, verify=True)


def test_memory_is_chosen_and_taken_ahead_without_being_told() -> None:
    config = parse_arguments(["--socket", "/s"])

    assert (config.dram_bytes, config.pages, config.prefault, config.configure_host) == (None, "auto", True, False)


def test_memory_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_arguments(["--socket", "/s", "--pages", "memfd", "--no-prefault", "--configure-host"])

    assert (config.pages, config.prefault, config.configure_host) == ("memfd", False, True)
    with pytest.raises(SystemExit):
        parse_arguments(["--socket", "/s", "--pages", "1g"])
    assert "hugetlb" in capsys.readouterr().err


def test_verification_is_on_unless_turned_off() -> None:
    assert not parse_arguments(["--socket", "/s", "--dram-bytes", "5", "--no-verify"]).verify


@pytest.mark.parametrize(
    "wrong",
    [
        {"dram_bytes": 0},
        {"dram_bytes": 1 << 63},
        {"pages": "1g"},
        {"threads": 0},
        {"threads": 1000},
        {"ssd_bytes_per_second": -1},
        {"metrics_port": 65536},
        {"socket_path": Path("/" + "x" * 107)},
    ],
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {"socket_path": Path("/s"), "dram_bytes": 1}

    with pytest.raises(ValueError, match=f"{next(iter(wrong)).split('_')[0]}"):
        StoreConfig(**(right | wrong))


def test_a_bad_command_line_exits_with_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--socket", "/s", "--dram-bytes", "-5"])
    assert "dram_bytes must be positive" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"cache_dir": Path("/c")},
        {"cache_bytes": 1},
        {"cache_dir": Path("/c"), "cache_bytes": -1},
        {"remote_bytes_per_second": -1},
    ],
)
def test_a_remote_tier_that_cannot_work_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        StoreConfig(socket_path=Path("/s"), **wrong)


def test_the_command_line_says_where_copies_are_kept() -> None:
    config = parse_arguments(
        ["--socket", "/s", "--cache-dir", "/c", "--cache-bytes", "9", "--remote-bytes-per-second", "7"]
    )
    assert (config.cache_dir, config.cache_bytes) == (Path("/c"), 9)
    assert config.throttles == Throttles(remote_bytes_per_second=7)
