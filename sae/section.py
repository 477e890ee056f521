"""Base class of all config sections: frozen, unknown keys are errors, numbers are finite."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A section of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: Any) -> object:
        """Refuse booleans for numbers: pydantic would read true as 1."""
        types = _leaves(cls.model_fields[str(info.field_name)].annotation)
        given = value if isinstance(value, list | tuple) else [value]
        if bool not in types and types & {int, float} and any(isinstance(one, bool) for one in given):
            raise ValueError(f"expected a number, found {value!r}")
        return value


def _leaves(annotation: Any) -> set[Any]:
    """The types an annotation is made of."""
    inner = get_args(annotation)
    return set().union(*map(_leaves, inner)) if inner and not _is_literal(annotation) else {annotation}


def _is_literal(annotation: Any) -> bool:
    return all(isinstance(one, str) for one in get_args(annotation))
