"""A Triton server of ours, asked past the gateway: vllm_backend's convention, and what it shows under /metrics."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serverless_triton.backend import agent_pb2, agent_pb2_grpc
from serverless_triton.backend.node_secret import TRITON_GRPC_HEADER, TRITON_HTTP_HEADER
from serverless_triton.cli.local_cluster import LocalCluster
from tests.e2e.conftest import DRAM_BYTES

PROMPT = "The three primary colours are"
MODEL = "alpha"


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One server, so that a model starts where it ran before."""
    with LocalCluster(tmp_path_factory.mktemp("cluster"), repository, servers=1, dram_bytes=DRAM_BYTES) as running:
        yield running


class DirectServer:
    """The ports of the tritonserver behind the gateway."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._secret = cluster.triton_secret()
        pid = cluster.pid("server-0.triton")
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        options = dict(
            argument.split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument
        )
        self._http_port, self._metrics_port = int(options["--http-port"]), int(options["--metrics-port"])
        self.grpc_address = f"127.0.0.1:{options['--grpc-port']}"

    def state(self, model: str) -> str:
        """As Triton's repository index has it."""
        with triton_grpc.InferenceServerClient(self.grpc_address) as client:
            index = client.get_model_repository_index(headers={TRITON_GRPC_HEADER: self._secret})
        states = [m.state for m in index.models if m.name == model]
        return str(states[-1])

    def post(self, path: str, **body: Any) -> tuple[int, str]:
        return self._ask(self._http_port, "POST", f"/v2/models/{MODEL}/{path}", json.dumps(body))

    def metrics(self) -> dict[str, float]:
        """Ours of this model: name and labels as on the page → value."""
        _, page = self._ask(self._metrics_port, "GET", "/metrics", None)
        lines = [line for line in page.splitlines() if line.startswith("serverless_triton_") and f'"{MODEL}"' in line]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def without_the_secret(self, method: str, path: str) -> tuple[int, str]:
        return self._ask(self._http_port, method, path, "{}", {})

    def _ask(
        self, port: int, method: str, path: str, body: str | None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        headers = {TRITON_HTTP_HEADER: self._secret} if headers is None else headers
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.fixture
def server(cluster: LocalCluster) -> DirectServer:
    assert cluster.generate(MODEL, PROMPT, max_tokens=1).errors == []
    return DirectServer(cluster)


@pytest.fixture
def expected(cluster: LocalCluster) -> str:
    """What the gateway says."""
    return cluster.generate(MODEL, PROMPT, max_tokens=12).text


def test_without_stream_there_is_one_response_that_begins_with_the_prompt(server: DirectServer, expected: str) -> None:
    status, answer = server.post("generate", text_input=PROMPT, max_tokens=12)
    assert (status, json.loads(answer)["text_output"]) == (200, PROMPT + expected)


def test_the_outputs_that_were_asked_for_come_along(server: DirectServer, expected: str) -> None:
    flags = dict.fromkeys(("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"), True)
    _, text = server.post("generate", text_input=PROMPT, max_tokens=12, exclude_input_in_output=True, **flags)
    answer = json.loads(text)
    assert (answer["text_output"], answer["finish_reason"], answer["num_output_tokens"]) == (expected, "length", 12)
    assert answer["num_input_tokens"] > 3
    assert "output_ids" not in answer


def test_a_stream_comes_in_pieces(server: DirectServer, expected: str) -> None:
    _, answer = server.post("generate_stream", text_input=PROMPT, max_tokens=12, stream=True)
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
    assert "".join(event["text_output"] for event in events) == expected
    assert len(events) > 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"return_logprobs": True}, "return_logprobs"),
        ({"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output"),
        ({"temprature": 1}, "temprature"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_not_served_is_refused_by_name(server: DirectServer, body: dict[str, Any], words: str) -> None:
    status, answer = server.post("generate", text_input=PROMPT, **body)
    assert status == 400
    assert words in json.loads(answer)["error"]


def test_tritons_metrics_page_shows_the_engine(cluster: LocalCluster, server: DirectServer) -> None:
    def value(name: str, **labels: str) -> float:
        marks = [f'{key}="{text}"' for key, text in {"model": MODEL, **labels}.items()]
        found = [v for n, v in server.metrics().items() if n.startswith(f"serverless_triton_engine_{name}{{")
                 and all(mark in n for mark in marks)]  # fmt: skip
        return found[0] if found else 0.0

    before = value("generated_tokens_total")
    server.post("generate", text_input=PROMPT, max_tokens=12, ignore_eos=True)
    cluster.until(lambda: value("generated_tokens_total") >= before + 12, "the tokens are on the page")
    assert value("ttft_seconds_count") >= 1
    assert value("ttft_seconds_bucket", le="+Inf") == value("ttft_seconds_count")
    assert value("itl_seconds_count") >= 1
    assert value("requests_total", code="length") >= 1
    assert value("start_span_seconds", span="worker.engine") > 0
    cluster.until(lambda: value("steps_total") >= 12, "the engine's own figures are there, too")
    assert value("kv_capacity_tokens") > 0


def test_a_model_starts_again_while_triton_still_unloads_it(cluster: LocalCluster, server: DirectServer) -> None:
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        client.unload_model(MODEL)
    assert server.state(MODEL) == "UNLOADING"  # Triton takes a second for it

    heard = cluster.generate(MODEL, PROMPT, max_tokens=4, ignore_eos=True)

    assert heard.errors == []
    assert len(heard.output_ids) == 4
    assert server.state(MODEL) == "READY"
    assert len(cluster.replicas(MODEL)) == 1


def test_triton_serves_nothing_over_grpc_to_those_who_do_not_show_the_secret(server: DirectServer) -> None:
    for shown in ((), ((TRITON_GRPC_HEADER, "guess"),)):
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
                call, message = getattr(stub, method.name), getattr(service_pb2, method.input_type.name)()
                streams = method.name == "ModelStreamInfer"
                with pytest.raises(grpc.RpcError) as caught:
                    list(call(iter([message]) if streams else message, metadata=shown, timeout=10))
                assert "This protocol is restricted" in caught.value.details(), method.name


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2"),
        ("GET", f"/v2/models/{MODEL}"),
        ("GET", f"/v2/models/{MODEL}/config"),
        ("GET", f"/v2/models/{MODEL}/stats"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", f"/v2/models/{MODEL}/infer"),
        ("POST", f"/v2/models/{MODEL}/generate"),
        ("POST", f"/v2/models/{MODEL}/generate_stream"),
        ("POST", "/v2/repository/index"),
        ("POST", f"/v2/repository/models/{MODEL}/load"),
        ("POST", f"/v2/repository/models/{MODEL}/unload"),
    ],
)
def test_triton_serves_nothing_over_http_to_those_who_do_not_show_the_secret(
    server: DirectServer, method: str, path: str
) -> None:
    status, answer = server.without_the_secret(method, path)
    assert (status, "This API is restricted" in answer) == (403, True)


def test_tritons_health_is_open_over_http(server: DirectServer) -> None:
    assert server.without_the_secret("GET", "/v2/health/live")[0] == 200


def test_the_agent_serves_nothing_to_those_who_do_not_show_the_secret(cluster: LocalCluster) -> None:
    with grpc.insecure_channel(cluster.agent_address()) as channel:
        agent = agent_pb2_grpc.NodeAgentStub(channel)
        for ask in (
            lambda: list(agent.Watch(agent_pb2.WatchRequest(), timeout=10)),
            lambda: agent.Start(agent_pb2.StartRequest(epoch=1 << 40), timeout=10),
            lambda: agent.Release(agent_pb2.ReleaseRequest(epoch=1 << 40), timeout=10),
            lambda: agent.Park(agent_pb2.ParkRequest(epoch=1 << 40), timeout=10),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                ask()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert cluster.generate(MODEL, PROMPT, max_tokens=1).errors == []  # no epoch was taken from a stranger


def test_the_secret_is_in_no_log_and_only_tritons_is_on_a_command_line(
    cluster: LocalCluster, server: DirectServer
) -> None:
    secret = (cluster.run_directory() / "secret").read_text().strip()
    tritons, agents = cluster.triton_secret(), cluster.agent_metadata()[0][1]
    for log in cluster.logs.iterdir():
        text = log.read_text(errors="replace")
        assert secret not in text, log
        assert tritons not in text, log
        assert agents not in text, log
    for name in ("server-0.store", "server-0.zygote", "server-0.agent", "server-0.triton", "scheduler"):
        command = Path(f"/proc/{cluster.pid(name)}/cmdline").read_text()
        assert secret not in command, name
        assert agents not in command, name
        assert (tritons in command) is (name == "server-0.triton"), name
