"""What a response says beside its tensors to who asked for it: how its wait looked, where its start's time went.

Each is a response parameter; over HTTP they are members of the body (`notices`), and the first receipt is a header too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.admission import Outlook
from serverless_triton.scheduler.receipts import Receipt, to_json

RECEIPT = "receipt"
RECEIPT_HEADER = "Triton-Receipt"
QUEUE_POSITION = "queue_position"
ESTIMATED_START = "estimated_start_s"


def tell_outlook(response: pb.ModelInferResponse, outlook: Outlook) -> None:
    """No estimate where nothing says."""
    response.parameters[QUEUE_POSITION].int64_param = outlook.queue_position
    if outlook.estimated_start_s is not None:
        response.parameters[ESTIMATED_START].double_param = outlook.estimated_start_s


def tell_receipts(response: pb.ModelInferResponse, receipts: Iterable[Receipt]) -> None:
    """As JSON: a list, first start first."""
    response.parameters[RECEIPT].string_param = json.dumps([to_json(receipt) for receipt in receipts])


def receipt_header(response: pb.ModelInferResponse) -> dict[str, str]:
    """The first receipt without its spans, for an HTTP answer; empty where there is none."""
    if RECEIPT not in response.parameters:
        return {}
    first = json.loads(response.parameters[RECEIPT].string_param)[0]
    del first["spans"]
    return {RECEIPT_HEADER: json.dumps(first, separators=(",", ":"))}


def notices(response: pb.ModelInferResponse) -> dict[str, object]:
    """As members of a JSON object; empty where nothing was asked for."""
    found: dict[str, object] = {}
    if QUEUE_POSITION in response.parameters:
        found[QUEUE_POSITION] = response.parameters[QUEUE_POSITION].int64_param
    if ESTIMATED_START in response.parameters:
        found[ESTIMATED_START] = response.parameters[ESTIMATED_START].double_param
    if RECEIPT in response.parameters:
        found[RECEIPT] = response.parameters[RECEIPT].string_param
    return found
