"""Which engines there are, by the name in a model's config.pbtxt. Each is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module

from serverless_triton.backend.engines.protocol import EngineBuilder, ModelNotSupported

_BUILDERS = {
    "fake": ("serverless_triton.backend.engines.fake", "FakeEngineBuilder"),
    "torch": ("serverless_triton.backend.engines.torch.builder", "TorchEngineBuilder"),
}


def engine_builder(name: str) -> EngineBuilder:
    """A new builder of the engine `name`. Raises ModelNotSupported where it or its library is not installed."""
    if name not in _BUILDERS:
        raise ModelNotSupported(f"engine {name!r} is unknown; installed are {', '.join(sorted(_BUILDERS))}")
    module, builder = _BUILDERS[name]
    try:
        made: EngineBuilder = getattr(import_module(module), builder)()
    except ImportError as error:
        raise ModelNotSupported(f"engine {name!r} needs a library that is not installed: {error}") from error
    return made


class EngineRegistry:
    """The builders of one process, made when first asked for. A fork's children inherit them and what they learned."""

    def __init__(self) -> None:
        self._builders: dict[str, EngineBuilder] = {}

    def builder(self, name: str) -> EngineBuilder:
        """Raises ModelNotSupported."""
        if name not in self._builders:
            self._builders[name] = engine_builder(name)
        return self._builders[name]
