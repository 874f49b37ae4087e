"""Which of the things that compiled code depends on are looked at before every step.

``torch.compile`` asks hundreds of questions before it uses compiled code again, which takes a good part of a small
network's step. Left out are those about what nobody exchanges: functions and classes of this library, of PyTorch and of
Python, constants of this library, and whether an object of it hides a method of its class; and what is asked twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._dynamo.types import GuardFilterEntry

_OF_CODE = ("BUILTIN_MATCH", "CLASS_MATCH", "CLOSURE_MATCH", "DUPLICATE_INPUT", "MODULE_MATCH")
_OF_LIBRARIES = re.compile(
    r"(dict\()?G\['(?!__import_)|(dict\()?G\['__import_(noisynat|torch|inspect|contextlib)(_dot_|'])"
)
_OF_OURS_OR_PYTHON = re.compile(r"(dict\()?G\['(__import_noisynat(_dot_|')|__builtins_dict__)")
_TOLD_BY_NAME = ("CONSTANT_MATCH", "EQUALS_MATCH", "TYPE_MATCH")  # whose answer is the value, or its class
_DEFAULTS = re.compile(r"\.__(kw)?defaults__")
_OF_A_CLASS = re.compile(r"dict\(type\((.+?)\)\.(__dict__|__mro__)")


def may_change(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    """For each question whether it has to be asked, as ``guard_filter_fn`` of ``torch.compile``."""
    classes = {guard.name: type(guard.value) for guard in guards if guard.has_value}
    asked, answers = set[tuple[str, str]](), []
    for guard in guards:
        question = guard.name, guard.guard_type
        again = guard.guard_type in _TOLD_BY_NAME and question in asked
        answers.append(not (again or _is_fixed(guard, classes)))
        asked.add(question)
    return answers


def _is_fixed(guard: GuardFilterEntry, classes: Mapping[str, type]) -> bool:
    if guard.guard_type == "NOT_PRESENT_IN_GENERIC_DICT":  # of an object that might hide a method of its class
        return _is_of(("noisynat",), classes.get(guard.name))
    if of_class := _OF_A_CLASS.match(guard.name):
        return _is_of(("noisynat", "torch"), classes.get(of_class[1]))
    if guard.is_global and _OF_LIBRARIES.match(guard.name):
        constant = _OF_OURS_OR_PYTHON.match(guard.name) or _DEFAULTS.search(guard.name)
        return guard.guard_type in _OF_CODE or constant is not None
    return False


def _is_of(libraries: Sequence[str], cls: type | None) -> bool:
    return cls is not None and cls.__module__.partition(".")[0] in libraries
