"""What a response says beside its tensors where the client asked for it: how its wait looked when it began.

Each is a response parameter; over HTTP they are members of the body (`notices`).
"""

from __future__ import annotations

from tritonclient.grpc import service_pb2 as pb

from serverless_triton.scheduler.admission import Outlook

QUEUE_POSITION = "queue_position"
ESTIMATED_START = "estimated_start_s"


def tell_outlook(response: pb.ModelInferResponse, outlook: Outlook) -> None:
    """No estimate where nothing says."""
    response.parameters[QUEUE_POSITION].int64_param = outlook.queue_position
    if outlook.estimated_start_s is not None:
        response.parameters[ESTIMATED_START].double_param = outlook.estimated_start_s


def notices(response: pb.ModelInferResponse) -> dict[str, object]:
    """As members of a JSON object; empty where nothing was asked for."""
    found: dict[str, object] = {}
    if QUEUE_POSITION in response.parameters:
        found[QUEUE_POSITION] = response.parameters[QUEUE_POSITION].int64_param
    if ESTIMATED_START in response.parameters:
        found[ESTIMATED_START] = response.parameters[ESTIMATED_START].double_param
    return found
