"""The reference of config keys (`sae train --fields`), generated from the pydantic models."""

from typing import Any

from sae.units import Duration, Time
from sae.variants import VARIANTS
from training.config.schema import Config


def fields() -> str:
    """Every key with its default and meaning; each variant's own keys below it."""
    lines: list[str] = []
    for name in Config.model_fields:
        if name == "sae":
            for variant, (_, config) in VARIANTS.items():
                lines.append(f"\nsae:  (variant: {variant})")
                lines += _lines(config, "  ")
        else:
            lines += _lines(Config, "", only=name)
    return "\n".join(lines)


def _lines(model: Any, indent: str, only: str | None = None) -> list[str]:
    out = []
    for name, info in model.model_fields.items():
        if only not in (None, name):
            continue
        section = next((a for a in _arguments(info.annotation) if hasattr(a, "model_fields")), None)
        default = "required" if info.is_required() else repr(info.get_default(call_default_factory=True))
        meaning = " ".join((info.description or "").split())
        if section is not None:
            out += [f"\n{indent}{info.alias or name}:  {meaning}".rstrip(), *_lines(section, indent + "  ")]
        else:
            default = _written(info.default) or default
            out.append(f"{indent}{info.alias or name}: {default}  — {meaning}")
    return out


def _written(default: Any) -> str | None:
    """A default written as in a config, if it is a duration or several; else None."""
    if isinstance(default, tuple) and all(isinstance(one, Duration) for one in default):
        return f"[{', '.join(map(str, default))}]"
    return str(default) if isinstance(default, Duration | Time) else None


def _arguments(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]
