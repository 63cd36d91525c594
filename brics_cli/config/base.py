"""The base of every config class, and validation that answers in one line."""

from __future__ import annotations

import types
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Config(BaseModel):
    """Frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


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
        raise UsageError(f"{source}: {_first_problem(cls, error)}") from None


def _first_problem(cls: type[BaseModel], error: ValidationError) -> str:
    """The most telling of pydantic's findings: an unknown key explains a missing one, so it goes first."""
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda found: found["type"] != "extra_forbidden")
    location = [part for part in problem["loc"] if part not in _tags(cls)]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(cls, tuple(location[:-1]), problem["loc"])
        return f"no key {key!r}{did_you_mean(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    if problem["type"] == "union_tag_invalid":
        expected = str(problem["ctx"]["expected_tags"]).replace("'", "")
        return f"{key}.kind = {problem['ctx']['tag']!r}, but it should be one of: {expected}"
    return f"{key} = {problem['input']!r}, but it should be {message}"


def _tags(cls: type[BaseModel]) -> set[str]:
    """Values of `kind` anywhere below `cls`; pydantic puts them into locations, users did not type them there."""
    tags: set[str] = set()
    for annotation in (field.annotation for field in cls.model_fields.values()):
        for model in _models(annotation):
            kind = model.model_fields.get("kind")
            if kind is not None:
                tags.update(str(tag) for tag in get_args(kind.annotation))
            tags |= _tags(model)
    return tags


def _models(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is Annotated or get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def _known_keys(cls: type[BaseModel], path: tuple[Any, ...], location: tuple[Any, ...]) -> list[str]:
    models: list[type[BaseModel]] = [cls]
    for part in path:
        below = [
            m for model in models if part in model.model_fields for m in _models(model.model_fields[part].annotation)
        ]
        chosen = [
            m
            for m in below
            if "kind" in m.model_fields and set(get_args(m.model_fields["kind"].annotation)) & set(location)
        ]
        models = chosen or below
    return sorted({key for model in models for key in model.model_fields})
