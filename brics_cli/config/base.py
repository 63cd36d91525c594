"""The base of every config class, and validation that answers in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Config(BaseModel):
    """Frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                near = did_you_mean(str(key), sorted(cls.model_fields))
                raise PydanticCustomError("unknown_key", "{near}", {"key": str(key), "near": near})
        return values


def default_kind(kind: str) -> BeforeValidator:
    """A block without `kind` is of this one: recipes and checkpoints from before there was a choice stay valid."""

    def with_kind(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, dict) else value

    return BeforeValidator(with_kind)


def validate(cls: type[ConfigT], values: Any, *, source: str) -> ConfigT:
    """`values` as a `cls`. Raises UsageError: one line with `source`, the dotted key and what is wrong."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # an unknown key explains a missing one, so it goes first
        problem = min(found, key=lambda each: each["type"] != "unknown_key")
        raise UsageError(f"{source}: {_said(problem, values)}") from None


def _said(problem: ErrorDetails, values: Any) -> str:
    key, kind, context = _key(problem, values), problem["type"], problem.get("ctx", {})
    if kind == "unknown_key":
        name = f"{key}.{context['key']}" if key else context["key"]
        return f"no key {name!r}{context['near']}"
    if kind == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    if kind == "union_tag_invalid":
        expected = str(context["expected_tags"]).replace("'", "")
        return f"{key}.kind = {context['tag']!r}, but it should be one of: {expected}"
    return f"{key} = {problem['input']!r}, but it should be {message}"


def _key(problem: ErrorDetails, values: Any) -> str:
    """The dotted key of a finding as it is written: without the values of `kind` that pydantic adds for unions."""
    parts: list[str] = []
    block: Any = values
    for number, part in enumerate(problem["loc"], start=1):
        is_missing = problem["type"] == "missing" and number == len(problem["loc"])
        if isinstance(block, Mapping) and part not in block and not is_missing:
            continue
        parts.append(str(part))
        if not is_missing and isinstance(block, Mapping | list | tuple):
            block = block[part]  # type: ignore[index]
    return ".".join(parts)
