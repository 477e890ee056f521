"""What all parts of a config have in common: frozen, unknown keys are errors, and numbers are finite numbers."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A part of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: Any) -> object:
        """Pydantic takes true for 1."""
        types = _leaves(cls.model_fields[str(info.field_name)].annotation)
        given = value if isinstance(value, list | tuple) else [value]
        if bool not in types and types & {int, float} and any(isinstance(one, bool) for one in given):
            raise ValueError(f"a number was expected, found {value!r}")
        return value


def _leaves(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    inner = get_args(annotation)
    return set().union(*map(_leaves, inner)) if inner and not _is_literal(annotation) else {annotation}


def _is_literal(annotation: Any) -> bool:
    return all(isinstance(one, str) for one in get_args(annotation))
