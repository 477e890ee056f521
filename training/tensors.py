"""Train an SAE on your own tensors from Python, without a folder or a YAML file: see `train_on`."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sae.base import SAEConfig
from sae.devices import resolve_device
from sae.errors import SaescopeError
from training.activations.arrays import Arrays, by_hook, is_array
from training.activations.harvest import Data
from training.activations.loader import Loader, LoaderBatches, Opened, opened
from training.activations.row_sequences import RowFacts, row_facts, row_tokens, what_is_split
from training.activations.sources import ActsSource
from training.activations.superblock_storage import place_for
from training.config.reading import merged, resolve
from training.config.schema import Config, DataConfig
from training.config.text_source import TENSORS
from training.config.unused import unused
from training.display import Display
from training.evaluate import HeldOut
from training.finish import Result
from training.memory import require_saes
from training.run import run, run_in_folders
from training.schedule import Clock
from training.site import Site
from training.sweep_shared import Shared, all_hooks, mask_of, share, site_hooks

UNNAMED = "tensors"


def train_on(
    rows: Any, sae: Mapping[str, Any] | SAEConfig, *, site: str | Mapping[str, Any] | Site | None = None,
    name: str | None = None, runs: str | Path = "runs", resume: bool = False, quiet: bool = False,
    documents: Any = None, held_out_rows: Any = None, **sections: Any,
) -> Result:
    """Train an SAE on your own activations.

        result = train_on(acts, {"variant": "topk", "d_sae": 4096, "k": 32}, train={"budget": "4 epochs"})
        result.summary["heldout"]["fve"], result.sae.encode(acts[:8])

    *Whole arrays* are split, calibrated on and shuffled exactly like the same rows in a folder (`corpus: acts:DIR`): as
    sequences of `corpus.n_ctx` consecutive rows, which are the unit of the held-out split and of the intervals. The arrays
    are not copied (memory-mapped ones stay on disk), except for the superblocks in memory (`data.superblock_rows`).

    *Batches* are used in the order they arrive; shuffling is up to the loader. The first rows are kept in memory to hold
    some out: enough for `eval.n_rows` held-out rows at the fraction `corpus.held_out`, at most `data.superblock_rows`. Rows
    equal to a held-out row are never trained on. Rows are regrouped into batches of `data.batch_rows`, by default the size
    of the first batch. A list or a DataLoader is iterated again for as many epochs as the budget needs. A generator can
    only be read once and has no length: give its budget in tokens or steps.

    Args:
        rows: an array or tensor, `[n_rows, d]` or `[n_seqs, n_ctx, d]`, in float16, bfloat16, float32 or float64; for two
            hooks a tuple (input, target) or a dict of arrays by hook. Or an iterable that yields batches in these forms.
        sae: the variant's config: `variant`, `d_sae`, `k`, ...
        site: for a dict, the hooks to read and to reconstruct; otherwise a name of the hook to record.
        name: name of a run folder for metrics, checkpoints and summary; None writes nothing.
        runs: the folder that holds the runs.
        resume: continue an interrupted run of that name, bit for bit if the rows arrive in the same order.
        quiet: no progress display.
        documents: for whole arrays, the document number of each row. Whole documents are then held out, and intervals are
            over documents.
        held_out_rows: for whole arrays, the rows to hold out, as one boolean per row or as row numbers.
        sections: `data`, `optim`, `train`, `eval` and `corpus` (n_ctx, held_out) as in a YAML config, with the same
            defaults. `n_ctx` defaults to the array's own, and to 256 for rows without sequences.

    Raises:
        SaescopeError: invalid rows, too few of them, or an invalid config; see the message.
    """
    if name is None and (resume or _section(sections, "train").get("wandb")):
        raise SaescopeError("resume and train.wandb need a run folder; give a name.")
    whole = is_array(rows) or isinstance(rows, tuple | Mapping)
    if not whole and not (documents is None and held_out_rows is None):
        raise SaescopeError("documents and held_out_rows only work with whole arrays; batches have no row numbers.")
    begun = None if whole else opened(rows)
    first = rows if begun is None else begun.first
    where = _site(first, site)
    fields: dict[str, Any] = {
        "name": name or UNNAMED, "model": None, "site": where.model_dump(mode="json"), "corpus": {"sources": TENSORS},
        "sae": dict(sae) if isinstance(sae, Mapping) else sae.model_dump(mode="json", by_alias=True),
    }
    what = "the array" if whole else "batch 0 of the iterable"
    defaults = _defaults(first, where, sections, batches=not whole, what=what)
    given = {key: dict(value) if isinstance(value, Mapping) else value for key, value in sections.items()}
    (config,) = resolve(merged(merged(fields, defaults), given))

    def from_rows(members: Sequence[Config], display: Display) -> Shared:
        require = partial(require_saes, members, saved=name is not None)
        if begun is None:
            arrays = Arrays(rows, all_hooks(members))
            return _arrays(members, arrays, row_facts(documents, held_out_rows, arrays.n_rows), display, require)
        return _loader(members, rows, begun, display, require)

    if name is None:
        if reason := unused(config):
            raise SaescopeError(reason)
        return run([config], None, from_rows, Display(quiet=quiet))[0]
    return run_in_folders([config], runs, from_rows, resume=resume, display=Display(quiet=quiet))[0]


def _site(given: object, site: str | Mapping[str, Any] | Site | None) -> Site:
    """The given site, or the one implied by the form of the rows."""
    if isinstance(site, Site):
        return site
    if site is not None:
        (config,) = resolve({
            "name": UNNAMED, "model": None, "corpus": TENSORS, "sae": {"variant": "topk", "d_sae": 1, "k": 1},
            "site": site if isinstance(site, str) else dict(site),
        })
        return config.site
    if isinstance(given, Mapping):
        if len(given) == 1:
            return Site(input=str(next(iter(given))))
        raise SaescopeError(
            f"rows of several hooks ({', '.join(map(str, given))}): choose which to read and which to reconstruct, for "
            "example site={'input': 'a', 'target': 'b'}."
        )
    if isinstance(given, list | tuple) and len(given) == 2:
        return Site(input="input", target="target")
    return Site(input="acts")


def _defaults(
    first: object, site: Site, sections: Mapping[str, Any], *, batches: bool, what: str
) -> dict[str, Any]:
    """Defaults taken from the rows: their sequence length, a block size that divides it, their batch size."""
    arrays = by_hook(first, site.hooks, what).values()
    n_ctx = next((int(a.shape[1]) for a in arrays if a.ndim == 3 and a.shape[1] > 1), None)
    out: dict[str, Any] = {"data": {}, "corpus": {} if n_ctx is None else {"n_ctx": n_ctx}}
    length = _section(sections, "corpus").get("n_ctx", n_ctx)
    if isinstance(length, int) and length > 0:
        out["data"]["block_rows"] = math.gcd(length, DataConfig().block_rows)
    if batches:
        n_rows = max(1, math.prod(next(iter(arrays)).shape[:-1]))
        out["data"]["batch_rows"] = n_rows
        out["data"]["superblock_rows"] = max(DataConfig().superblock_rows, n_rows)
    return out


def _section(sections: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section if it is a mapping, else an empty one; a wrong type is reported when the config is resolved."""
    found = sections.get(name)
    return found if isinstance(found, Mapping) else {}


def _arrays(
    members: Sequence[Config], arrays: Arrays, facts: RowFacts, display: Display,
    require: Callable[[Mapping[str, int]], None],
) -> Shared:
    """Shuffled batches of whole arrays."""
    require(arrays.hooks)
    tokens = row_tokens(members[0], arrays.n_rows, arrays.identity, facts)
    display.say(what_is_split(members[0], tokens))
    return share(members, Data(ActsSource(arrays), tokens, None), display)


def _loader(
    members: Sequence[Config], given: Any, begun: Opened, display: Display, require: Callable[[Mapping[str, int]], None]
) -> Shared:
    """Batches in the order they arrive; the held-out split and calibration come from the first rows."""
    config, hooks = members[0], all_hooks(members)
    display.say(f"reading the first {_stretch_rows(config):,} rows for the held-out split and calibration")
    loader = Loader(given, begun, hooks, _stretch_rows(config))
    tokens = row_tokens(config, loader.stretch.n_rows, loader.stretch.identity, RowFacts())
    data = Data(ActsSource(loader.stretch), tokens, None)
    require(data.source.widths)
    display.say(what_is_split(config, tokens))
    mask = mask_of(members, data)
    held_out = tokens.sequences(held_out=True)
    held_rows = {hook: data.source.rows(hook, held_out, tokens.n_ctx) for hook in hooks}
    clock = _clock(config, loader, len(held_out) * tokens.n_ctx)
    place = place_for(resolve_device(config.train.device), 0, 0)
    batches = LoaderBatches(loader, held_rows, mask.limits, batch_rows=config.data.batch_rows, place=place)
    heldout = HeldOut(data.source, tokens, mask, site_hooks(members), config.eval.n_rows) if len(held_out) else None
    return Shared(data, mask, clock, batches, heldout)


def _stretch_rows(config: Config) -> int:
    """Rows to read first: enough for `eval.n_rows` held-out rows if they fit, and always for `data.n_calib` sequences."""
    share = config.corpus.held_out
    calibration = math.ceil(config.data.n_calib * config.corpus.n_ctx / (1 - share))
    return max(calibration, min(math.ceil(config.eval.n_rows / share), config.data.superblock_rows) if share else 0)


def _clock(config: Config, loader: Loader, n_held_out: int) -> Clock:
    """The length of the run; an epoch is one pass over the rows that are not held out."""
    budget, batch_rows = config.train.budget, config.data.batch_rows
    n_rows = None if loader.n_rows is None else loader.n_rows - n_held_out
    if n_rows is None and budget.unit == "epochs":
        raise SaescopeError(
            f"train.budget = {budget}, but the iterable has no length; give the budget in tokens or steps, for example "
            "train={'budget': '2M tokens'}."
        )
    clock = Clock.of(budget, batch_rows=batch_rows, epoch_rows=n_rows or 0)
    if loader.once and n_rows is not None and clock.n_steps * batch_rows > n_rows:
        raise SaescopeError(
            f"train.budget = {budget} is {clock.budget_rows:,} rows, but the generator yields only {n_rows:,} to train on "
            "and cannot be restarted; lower the budget, or pass a list or a DataLoader."
        )
    return clock
