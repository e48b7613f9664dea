"""Any valid safetensors file, made by hypothesis, and the comparison with what the official reader makes of it."""

import json
import struct

import torch
from hypothesis import strategies as st

from serverless_triton.loader.tensors import TORCH_NAMES

ITEM_BYTES = {
    name: getattr(torch, torch_name).itemsize
    for name, torch_name in TORCH_NAMES.items()
    if hasattr(torch, torch_name) and name != "F4"
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A valid file: any names and dtypes, scalars, empty tensors, any alignment, entries in any order."""
    header: dict[str, object] = {}
    data = b""
    for name in draw(st.lists(NAMES, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        count = torch.Size(shape).numel() * ITEM_BYTES[dtype]
        values = draw(st.binary(min_size=count, max_size=count))
        if dtype == "BOOL":
            values = bytes(byte % 2 for byte in values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + count]}
        data += values
    entries = draw(st.permutations(list(header.items())))
    if draw(st.booleans()):
        entries = [("__metadata__", draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3)))), *entries]
    text = json.dumps(dict(entries), ensure_ascii=draw(st.booleans())).encode()
    text += b" " * draw(st.integers(0, 9))
    return struct.pack("<Q", len(text)) + text + data


def every_dtype() -> bytes:
    """A file with three tensors of each dtype: a scalar, an empty one, and one that begins at an odd byte."""
    header: dict[str, object] = {}
    data = b""

    def append(name: str, dtype: str, shape: list[int]) -> None:
        nonlocal data
        end = len(data) + torch.Size(shape).numel() * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += bytes(i % 2 for i in range(end - len(data)))

    for dtype in sorted(ITEM_BYTES):
        append(f"{dtype} scalar", dtype, [])
        append(f"{dtype} empty", dtype, [0, 3])
        if len(data) % 2 == 0:
            append(f"before {dtype}", "U8", [1])
        append(f"{dtype} at an odd byte", dtype, [2, 2])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.numel():
            assert torch.equal(ours[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
