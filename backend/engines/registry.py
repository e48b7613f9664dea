"""Which engines there are, by the name that a model's config.pbtxt gives. An engine's libraries are imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from serverless_triton.backend.engines.protocol import EngineBuilder, ModelNotSupported

_BUILDERS = {
    "fake": ("serverless_triton.backend.engines.fake", "FakeEngineBuilder"),
    "torch": ("serverless_triton.backend.engines.torch.builder", "TorchEngineBuilder"),
}


def engine_builder(name: str) -> EngineBuilder:
    """A new builder of the engine `name`. Raises ModelNotSupported where there is no such engine or its library is missing."""
    if name not in _BUILDERS:
        raise ModelNotSupported(f"engine {name!r} is unknown; installed are {', '.join(sorted(_BUILDERS))}")
    module, builder = _BUILDERS[name]
    try:
        made: EngineBuilder = getattr(import_module(module), builder)()
    except ImportError as error:
        raise ModelNotSupported(f"engine {name!r} needs a library that is not installed: {error}") from error
    return made
