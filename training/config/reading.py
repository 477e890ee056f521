"""Read a config: parse YAML, apply dotted overrides (`sae.k=64`), expand sweeps, explain mistakes.

A sweep is a list of overrides; its members share one stream of batches.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sae.errors import SaescopeError
from sae.io.paths import user_path
from sae.variants import variant_config
from training.config.schema import Config, auto_lr
from training.config.yaml12 import load_yaml

Kind = TypeVar("Kind", bound=BaseModel)
SWEPT = ("sae", "site", "optim")
"""Sections that may differ between the members of a sweep: everything else determines the shared stream."""
SWEPT_KEYS = ("train.dead_window",)
"""Single keys of other sections that may differ, too."""


def read(path: str | Path, overrides: Sequence[str] = ()) -> list[Config]:
    """Read a YAML file into resolved configs: one, or one per entry of `sweep`.

    Raises:
        SaescopeError: no such file, bad YAML, an unknown key, or an invalid value.
    """
    return resolve(fields_of(path), overrides, str(path))


def fields_of(path: str | Path) -> dict[str, Any]:
    """Read a YAML file into a plain dict.

    Raises:
        SaescopeError: no such file, or its content is not a YAML mapping.
    """
    path = user_path(path)
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "no .yaml file"
        raise SaescopeError(f"no config at {path}; {path.parent} holds {there}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise SaescopeError(f"{path} cannot be read ({error}); a config must be YAML in UTF-8.") from None
    fields = load_yaml(text, str(path))
    if not isinstance(fields, dict):
        found = "nothing" if fields is None else f"a {type(fields).__name__}"
        raise SaescopeError(f"{path}: a config must be a mapping of sections, found {found}; see `sae train --fields`.")
    if names := [key for key in fields if not isinstance(key, str)]:
        raise SaescopeError(f"{path}: the key {names[0]!r} is not a string; put it in quotes, or remove it.")
    return fields


def resolve(fields: dict[str, Any], overrides: Sequence[str] = (), where: str = "config") -> list[Config]:
    """Resolve plain fields and dotted overrides (`sae.k=64`) into configs: one, or one per entry of `sweep`."""
    fields = overridden(fields, overrides)
    entries = fields.get("sweep")
    base = {key: value for key, value in fields.items() if key != "sweep"}
    if entries is None:
        return [_training(base, where)]
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries) or not entries:
        raise SaescopeError(f"{where}: sweep must be a list of overrides such as {{name: a, sae: {{k: 16}}}}.")
    members = list(_members(base, entries, where))
    return _shared_mask([_training(fields, f"{where}, sweep member {fields['name']}") for fields in members])


def overridden(fields: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply dotted overrides to plain fields."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SaescopeError(f"{override!r} is not an override; use KEY=VALUE, for example sae.k=64.")
        fields = merged(fields, _nested(key.strip(), load_yaml(value, override)))
    return fields


def _members(base: dict[str, Any], entries: list[dict[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    names: set[str] = set()
    for i, entry in enumerate(entries):
        fields = base
        for key, value in entry.items():
            if key not in ("name", *SWEPT_KEYS) and key.split(".")[0] not in SWEPT:
                raise SaescopeError(
                    f"{where}: sweep entry {i + 1} changes {key}, but members of a sweep share one stream of batches; "
                    f"only {', '.join((*SWEPT, *SWEPT_KEYS))} may differ."
                )
            fields = fields if key == "name" else merged(fields, _nested(key, value))
        name = str(entry.get("name", f"{i:02d}"))
        if name in names or "/" in name or not name.strip("."):
            raise SaescopeError(
                f"{where}: sweep entry {i + 1} is called {name!r}; names must be unique, not empty, and without slashes."
            )
        names.add(name)
        yield {**fields, "name": f"{base.get('name')}/{name}"}


def _shared_mask(configs: list[Config]) -> list[Config]:
    """Set `mask_hooks` of every member to the union of all hooks, so that each can be trained alone on the same rows."""
    hooks = tuple(dict.fromkeys(hook for c in configs for hook in (c.data.mask_hooks or c.site.hooks)))
    return [c.model_copy(update={"data": c.data.model_copy(update={"mask_hooks": hooks})}) for c in configs]


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(base: Any, over: Any) -> Any:
    """Merge `over` into `base` recursively; a mapping in `over` replaces a plain value in `base`."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def validated(kind: type[Kind], fields: dict[str, Any], where: str) -> Kind:
    """Validate plain fields as a config of the given kind.

    Raises:
        SaescopeError: an unknown key, with the closest known one, or an invalid value.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise SaescopeError(f"{where}: {_explained(error, fields, kind)}") from None
    except SaescopeError as error:
        raise SaescopeError(f"{where}: {error}") from None


def _training(fields: dict[str, Any], where: str) -> Config:
    """Validate one config; fill in the automatic learning rate, and set model to null if none is needed or given."""
    config = validated(Config, _with_only_hook(fields, where), where)
    changes: dict[str, Any] = {}
    if config.optim.lr is None:
        changes["optim"] = config.optim.model_copy(update={"lr": auto_lr(config.sae.d_sae)})
    if not config.corpus.needs_model and "model" not in config.model_fields_set:
        changes["model"] = None
    return config.model_copy(update=changes)


def _with_only_hook(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Fill in the site from `acts:DIR` if none is given and the folder has only one hook."""
    corpus = fields.get("corpus")
    sources = corpus.get("sources") if isinstance(corpus, dict) else corpus
    if isinstance(sources, list) and len(sources) == 1:
        (sources,) = sources
    source = sources.get("source") if isinstance(sources, dict) else sources
    if "site" in fields or not isinstance(source, str) or not source.startswith("acts:"):
        return fields
    from training.activations.own_rows import hooks_of

    hooks = hooks_of(source.removeprefix("acts:"))
    if len(hooks) != 1:
        raise SaescopeError(f"{where}: {source} has rows of {', '.join(hooks)}; choose one, for example site={hooks[0]}.")
    return {**fields, "site": hooks[0]}


def _explained(error: ValidationError, fields: dict[str, Any], kind: type[BaseModel]) -> str:
    """Describe the first problem in one sentence; for an unknown key, suggest the closest known one."""
    # a misspelled required key is reported as unknown and as missing: show the misspelling
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    # a variant's config is validated separately, so its path lacks the section
    path = [str(p) for p in first["loc"]]
    if error.title not in (kind.__name__, ""):
        path = ["sae", *path]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _keys_beside(path, fields, kind)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}."
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"{key} is missing."
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}." if key else f"{message}."
    wanted = first["msg"].partition(", unable")[0]
    if first["type"] == "model_type":
        wanted = "Input should be a mapping of keys"
    gap = " " if wanted.startswith("Input should") else ": "
    return f"{key}{gap}{wanted.removeprefix('Input ')}, found {_short(first['input'])}."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys_beside(path: list[str], fields: dict[str, Any], kind: type[BaseModel]) -> list[str]:
    """The valid keys at the position of the unknown one."""
    model: Any = kind
    for i, part in enumerate(path[:-1]):
        if kind is Config and i == 0 and part == "sae":
            model = variant_config(fields["sae"])
            continue
        info = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = next((a for a in _annotations(info) if hasattr(a, "model_fields")), model) if info else model
    return [f.alias or name for name, f in model.model_fields.items()] + (["sweep"] if model is Config else [])


def _annotations(info: Any) -> list[Any]:
    """A field's type and the types inside it."""
    found, open_ = [], [info.annotation]
    while open_:
        annotation = open_.pop()
        found.append(annotation)
        open_ += list(getattr(annotation, "__args__", ()))
    return found
