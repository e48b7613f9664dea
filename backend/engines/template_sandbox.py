"""Where a checkpoint's chat template runs: Jinja's immutable sandbox, bounded in time.

It has the globals that Hugging Face's templates are written for, without what transformers closes besides (`dict`'s
attributes, namespaces with private names). Every turn of a loop, every call, filter, test and item asks how long the
template has computed. A single operation cannot be asked, so it is bounded by the size of what it is given.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from serverless_triton.backend.engines.protocol import InvalidRequest

MOST_SECONDS = 2.0  # of a processor: a busy machine refuses nobody
MOST_ITEMS = 32 << 20  # or characters, of one value
MOST_BITS = 4096  # of a number that is calculated
_STEPS_A_LOOK = 32  # at the clock, which takes as long as many a step
_SIZED_FILTERS = frozenset({"batch", "center", "indent", "slice"})
_MANY = (str, bytes, list, tuple, dict, set)


class _WatchedLoops(CodeGenerator):
    """Begins each turn of a loop with `check_time`."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - Jinja names it
        look = nodes.Call(nodes.EnvironmentAttribute("check_time"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(look, lineno=node.lineno))
        super().visit_For(node, frame)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """For one template, in one thread at a time; `start_clock` before it is compiled and before each time it runs."""

    code_generator_class = _WatchedLoops
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self._ends_s, self._steps = 0.0, 0
        self.filters["tojson"] = _to_json
        self.filters = {name: self._watched(name, function) for name, function in self.filters.items()}
        self.tests = {name: self._watched(name, function) for name, function in self.tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def start_clock(self) -> None:
        """The time counts from here, in this thread."""
        self._ends_s, self._steps = time.thread_time() + MOST_SECONDS, 0

    def check_time(self) -> None:
        """To be called at each step. Raises InvalidRequest."""
        self._steps += 1
        if self._steps % _STEPS_A_LOOK == 0 and time.thread_time() > self._ends_s:
            raise InvalidRequest(
                f"this model's chat template computes for more than {MOST_SECONDS:g} s over the messages; send fewer, "
                "or correct the template"
            )

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja's
        __self.check_time()
        owner = getattr(__obj, "__self__", None)
        _check_sizes(owner, *args)
        if isinstance(owner, str):
            _check_numbers(*args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.check_time()
        _check_sizes(left, right)
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check_time()  # filters such as `map(attribute=...)` have a loop of their own over this
        return super().getitem(obj, argument)

    def _watched(self, name: str, function: Any) -> Callable[..., Any]:
        """The filter or test, which Jinja also calls from loops of its own, as in `map`."""

        @functools.wraps(function)  # with the marks by which Jinja knows what it wants
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.check_time()
            _check_sizes(*args)
            if name in _SIZED_FILTERS:
                _check_numbers(*args[1:], *kwargs.values())
            return function(*args, **kwargs)

        return watched


def _check_sizes(*values: Any) -> None:
    for value in values:
        if isinstance(value, _MANY) and len(value) > MOST_ITEMS:
            raise _too_large()


def _check_numbers(*values: Any) -> None:
    """Of a filter or a method for which they are sizes."""
    if any(isinstance(value, int) and value > MOST_ITEMS for value in values):
        raise _too_large()


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MOST_BITS:
            raise _too_large()
    elif isinstance(left, int) and isinstance(right, _MANY):
        _check_product(right, left)
    elif isinstance(left, _MANY) and isinstance(right, int) and len(left) * right > MOST_ITEMS:
        raise _too_large()


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MOST_BITS:
        raise _too_large()


def _too_large() -> InvalidRequest:
    return InvalidRequest(
        f"this model's chat template makes a value of more than {MOST_ITEMS} characters or items, or a number of more "
        f"than {MOST_BITS} bits; send fewer messages, or correct the template"
    )


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here they are only themselves."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that keeps no private names: through them a template could reach the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in Jinja's own
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace may not hold names that begin with _")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML."""
    _check_numbers(indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
