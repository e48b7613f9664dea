"""What perf_analyzer says is read strictly: an error, a missing answer or a wrong count never passes for a result."""

import json
import sys
from pathlib import Path

import pytest

from perf import perf_analyzer_tool
from perf.perf_analyzer_tool import AnalyzerFailed, PerfAnalyzer, check_output, input_data, parse_profile
from perf.workloads import WorkloadSpec, generate

GOOD = """*** Measurement Settings ***
  Sending 6 benchmark requests
  Detected decoupled model, using the first response for measuring latency
Request concurrency: 2
  Client:
    Request count: 6
    Throughput: 2.99591 infer/sec
"""


def profile(*requests: tuple[int, list[int]]) -> dict[str, object]:
    return {"experiments": [{"requests": [{"timestamp": sent, "response_timestamps": got} for sent, got in requests]}]}


def test_times_are_seconds_from_each_requests_sending():
    analysis = parse_profile(profile((3_000_000_000, [3_500_000_000]), (1_000_000_000, [1_250_000_000, 2_000_000_000])))
    assert analysis.first_response_s == (0.25, 0.5)
    assert analysis.last_response_s == (1.0, 0.5)
    assert analysis.responses == (2, 1)
    assert analysis.duration_s == 2.5


@pytest.mark.parametrize("bad", [profile(), profile((1, [2]), (3, []))])
def test_a_request_without_response_is_an_error(bad: dict[str, object]):
    with pytest.raises(AnalyzerFailed, match="no response"):
        parse_profile(bad)


def test_good_output_passes():
    check_output(0, GOOD, 6)


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (0, f"{GOOD}Failed to retrieve results: Request for unknown model\n", "unknown model"),
        (0, f"{GOOD}Thread [0] had error: stream ended\n", "stream ended"),
        (99, "usage\n", "99"),
        (0, GOOD.replace("count: 6", "count: 5"), "5 answered requests of 6"),
        (0, "nothing at all", "0 answered"),
    ],
)
def test_bad_output_is_an_error_with_its_words(status: int, text: str, words: str):
    with pytest.raises(AnalyzerFailed, match=words):
        check_output(status, text, 6)


def test_requests_become_the_tensors_of_vllm_backend():
    requests = generate(WorkloadSpec(seed=1, requests=2, models=("m",), rate_per_s=1.0))
    first, second = input_data(requests)["data"]
    assert first["text_input"] == [requests[0].prompt]
    assert second["stream"] == [True]
    assert json.loads(second["sampling_parameters"][0])["max_tokens"] == requests[1].output_tokens


def fake_analyzer(folder: Path, script: str) -> PerfAnalyzer:
    folder.mkdir(exist_ok=True)
    binary = folder / "perf_analyzer"
    binary.write_text(f"#!{sys.executable}\n{script}\n")
    binary.chmod(0o755)
    return PerfAnalyzer(binary=binary)


def test_one_on_path_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    analyzer = fake_analyzer(tmp_path / "bin", "print('Perf Analyzer Version 2.51.0')")
    monkeypatch.setenv("PATH", str(analyzer.binary.parent), prepend=":")
    assert perf_analyzer_tool.find_perf_analyzer(tmp_path) == analyzer


def test_a_placeholder_on_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    placeholder = fake_analyzer(tmp_path / "bin", "print('install the SDK')")
    monkeypatch.setenv("PATH", str(placeholder.binary.parent), prepend=":")
    real = fake_analyzer(tmp_path / "wheel", "print('Perf Analyzer Version 2.60.0')")
    monkeypatch.setattr(perf_analyzer_tool, "_from_new_wheel", lambda _cache, _report: real)
    assert perf_analyzer_tool.find_perf_analyzer(tmp_path) == real
