"""Deadlines, outlooks and receipts on request, through real Triton servers."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc

from serverless_triton.cli.local_cluster import LocalCluster
from serverless_triton.cli.stream_client import generation_inputs
from tests.e2e.test_serving import PROMPT, cpu_ticks, make_cold, receipts


def generated(cluster: LocalCluster, model: str, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.http_port, timeout=60)
    connection.request("POST", f"/v2/models/{model}/generate", json.dumps({"text_input": PROMPT, **body}), headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def test_a_request_whose_time_is_up_computes_no_more(cluster: LocalCluster) -> None:
    cluster.generate("alpha", PROMPT, max_tokens=1)
    worker = cluster.serving("alpha")["worker_pid"]
    endless = {"max_tokens": 450, "ignore_eos": True}
    status, found = generated(cluster, "alpha", endless, **{"Triton-Request-Timeout-Ms": "700"})
    assert status == 504
    assert "longer than the 0.7 s" in found["error"]
    cluster.until(lambda: cluster.serving("alpha")["streams"] == 0, "the reference is given back")
    cluster.until(lambda: cpu_ticks(worker, during_s=0.5) <= 5, "the worker computes no more", timeout_s=5.0)


def test_the_outlook_predicts_the_start_that_comes(cluster: LocalCluster) -> None:
    make_cold(cluster, "beta")
    before = cluster.get("/v2/cluster/outlook/beta")
    heard = cluster.generate("beta", PROMPT, max_tokens=1)
    (receipt,) = receipts(cluster, heard.stream_id)
    assert before["queue_position"] == 1
    assert before["estimated_start_s"] == pytest.approx(receipt["predicted_s"])
    assert cluster.get("/v2/cluster/outlook/beta")["queue_position"] == 0


def test_a_receipt_comes_with_the_answer(cluster: LocalCluster) -> None:
    make_cold(cluster, "beta")
    with triton_grpc.InferenceServerClient(cluster.grpc) as client:
        given = generation_inputs(PROMPT, max_tokens=2)
        response = client.infer("beta", given, parameters={"return_receipt": True}).get_response()
    (receipt,) = json.loads(response.parameters["receipt"].string_param)
    assert receipt["kind"] in ("cold", "parked")
    assert receipts(cluster, response.parameters["stream_id"].string_param) == [receipt]
