"""Where chat templates run: jinja2's sandbox as Hugging Face sets it up, within a `Budget`.

jinja2's `ImmutableSandboxedEnvironment` refuses access to the internals of Python objects, and
changes of what a template is given. It bounds neither time nor memory. Here templates are compiled
so that loops count their rounds, and that operators, calls, filters, tests, literals and captured
texts measure what they make.

What templates rely on, as in transformers' ``chat_template_utils``: ``trim_blocks`` and
``lstrip_blocks``, the tags ``break``, ``continue`` and ``generation``, the functions
``raise_exception`` and ``strftime_now``, and a ``tojson`` that leaves HTML's letters alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

from latticeq.errors import MissingDependencyError
from latticeq.model.template_budget import Budget

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

__all__ = ["Raised", "compile_template"]

# Names of filters that no template can spell.
_ROUNDS, _BOUNDED, _JOINED = "of a loop", "of a literal", "of ~"


class Raised(Exception):
    """What a template said with ``raise_exception``."""


def compile_template(source: str) -> Callable[..., str]:
    """Return a function from a template's variables to its text.

    Both this and the function raise whatever the operations in a template can raise.

    Raises
    ------
    MissingDependencyError
        If jinja2 is not installed.
    FormatError
        By the function: if the budget does not suffice.
    Raised
        By the function: if the template says so.
    """
    budget = Budget()
    template = _environment(budget).from_string(source)

    def render(**variables: Any) -> str:
        budget.start(variables)
        parts, length = [], 0
        for part in template.generate(variables):
            parts.append(part)
            length += len(part)
            budget.allow(length)
        return "".join(parts)

    return render


def _environment(budget: Budget) -> Environment:
    """Return jinja2's sandbox with everything in it that can grow or go on led through a budget."""
    _check_jinja2()
    from jinja2.exceptions import SecurityError
    from jinja2.ext import loopcontrols
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            # jinja2 gives something undefined, which is printed as nothing.
            raise SecurityError(f"attribute {attribute!r} of {type(obj).__name__!r} is not given")

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            budget.before_operator(operator, left, right)
            return budget.bounded(super().call_binop(context, operator, left, right))

        def call(self, context: Any, obj: Any, /, *args: Any, **options: Any) -> Any:
            if isinstance(obj, LoopContext):  # a recursive loop's next level
                args = (budget.rounds(args[0]), *args[1:])
            owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
            name = getattr(obj, "__name__", "") if isinstance(owner, str | bytes | int) else ""
            budget.before_call(name, owner, [*args, *options.values()])
            return budget.bounded(super().call(context, obj, *args, **options))

        def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
            return super()._generate(_metered(source), *args, **options)

        def concat(self, parts: Any) -> str:  # of captured texts
            return budget.joined(parts)

    class ShortNamespace(Namespace):
        def __repr__(self) -> str:  # what it holds is not measured with what holds it
            return "<namespace>"

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
    )
    del environment.globals["lipsum"]
    environment.globals.update(
        namespace=ShortNamespace, raise_exception=_raise_exception, strftime_now=_strftime_now
    )
    environment.filters["tojson"] = _tojson
    for table in (environment.filters, environment.tests):
        functions: dict[str, Any] = dict(table)
        table.update({name: _guarded(name, f, budget) for name, f in functions.items()})
    environment.finalize = budget.printed
    environment.filters[_ROUNDS] = budget.rounds
    environment.filters[_BOUNDED] = budget.bounded
    environment.filters[_JOINED] = budget.joined
    return environment


def _check_jinja2() -> None:
    """Make sure that jinja2 is there, and that its sandbox is one.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or so old that templates can reach out of its sandbox.
    """
    try:
        found = version("jinja2")
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "chat templates need the jinja2 package; run: pip install 'latticeq[chat]'"
        ) from error
    if [int(part) for part in found.split(".")[:3] if part.isdecimal()] < [3, 1, 6]:
        raise MissingDependencyError(
            f"jinja2 {found} is installed, whose sandbox templates can leave; chat templates need "
            "3.1.6 or newer: run: pip install --upgrade 'latticeq[chat]'"
        )


def _guarded(name: str, function: Callable[..., Any], budget: Budget) -> Callable[..., Any]:
    """Return a filter or test that measures what it is given, and what it makes."""
    from jinja2 import Environment
    from jinja2.nodes import EvalContext
    from jinja2.runtime import Context

    @functools.wraps(function)  # which copies what jinja2 notes on functions, too
    def guard(*args: Any, **options: Any) -> Any:
        own = [x for x in args if not isinstance(x, Environment | EvalContext | Context)]
        budget.before_call(name, own[0], [*own[1:], *options.values()])
        return budget.bounded(function(*args, **options))

    return guard


def _metered(template: nodes.Template) -> nodes.Template:
    """Lead loops, literals and ``~`` of a syntax tree through filters that count and measure."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def through(node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Metering(NodeTransformer):
        def visit_For(self, node: nodes.For) -> nodes.For:
            self.generic_visit(node)
            node.iter = through(node.iter, _ROUNDS)
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
            self.generic_visit(node)
            return through(nodes.Tuple(node.nodes, "load", lineno=node.lineno), _JOINED)

        def visit_List(self, node: nodes.List) -> nodes.Expr:
            self.generic_visit(node)
            return through(node, _BOUNDED)

        def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
            self.generic_visit(node)
            return through(node, _BOUNDED)

        def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
            self.generic_visit(node)
            return through(node, _BOUNDED) if node.ctx == "load" else node

    metered: nodes.Template = Metering().visit(template)
    return metered


def _generation_tag() -> Any:
    """Return the extension for ``{% generation %}``, which marks what is trained on."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2's way

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body, lineno=line)

        def _body(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def _raise_exception(message: object) -> NoReturn:
    raise Raised(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
