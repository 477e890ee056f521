"""Build an index: encode all rows in one pass, then per-feature data, then neighbours; written to a temporary folder.

Several processes can build one index together: each encodes the next unclaimed shard, and one of them writes the rest.
An interrupted build resumes with the missing shards. An index records hashes of its inputs: weights, tokens, rows, mask
and settings. `sae index` keeps one that is up to date, and otherwise says what changed.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from analysis.corpus_rows import CorpusRows, open_rows
from analysis.index import store
from analysis.index.columns import Columns, Context, write_columns
from analysis.index.encode import BLOCK_ROWS, Codes, begin, clear, encode, is_begun, join_codes, shard_seqs
from analysis.index.fidelity import fidelity
from analysis.index.neighbours import (
    MAX_PAIRS,
    Coactive,
    Decoder,
    coactivation,
    decoder_neighbours,
    directions,
    not_read_by_unembedding,
    plane,
    promoted_tokens,
)
from analysis.index.read import Index, open_index
from analysis.index.table import write_stats
from analysis.trained import open_trained
from analysis.vocabulary import Vocabulary
from sae import store as sae_store
from sae.base import SAE
from sae.devices import resolve_device
from sae.errors import SaescopeError
from sae.io.files import atomic_dir, code_version, read_json, read_tensors, write_json
from sae.io.locks import locked
from sae.io.paths import user_path
from sae.torch_state import own_torch_state
from training.display import Display
from training.model.language_model import Model
from training.model.token_bytes import token_bytes
from training.provenance import first_difference

SHARD_ROWS = 131_072
"""Rows per shard; finished shards survive an interruption."""


@own_torch_state()
def build(
    run: str | Path, *, corpus: Sequence[str] | None = None, name: str = "default", n_rows: int | None = None,
    refine: int = 0, memory: str | int = "1 GB", quiet: bool = False, again: bool = False,
    batch_rows: int | None = None, shard_rows: int = SHARD_ROWS, display: Display | None = None,
) -> Index:
    """Index a run over its own cache, or over another corpus through its model.

    Args:
        run: the folder of a finished run.
        corpus: config overrides such as `corpus.sources=text:notes.txt`; None for the run's own corpus.
        name: name of the index, `runs/NAME/index/<name>`.
        n_rows: index only the first rows (rounded up to whole sequences).
        refine: number of refinement steps for codes (`sae.refine`); recorded, and used for prompts shown with this index.
        memory: budget for what grows with the rows, "1 GB" or bytes; excludes the weights, the model and about 30 bytes
            per token.
        quiet: no progress display.
        again: rebuild even if it is up to date.
        batch_rows: rows read at a time; by default as many as fit the memory. Doesn't change the index.
        shard_rows: rows per resumable shard. Doesn't change the index.
        display: the display of a larger job with planned steps.

    Raises:
        SaescopeError: the run isn't finished; the corpus, model or cache is missing; the disk is full; or `refine` is set
            for a transcoder.
    """
    run, budget = user_path(run), memory_bytes(memory)
    folder = run / "index" / checked_name(name)
    display = display or Display(quiet=quiet)
    trained = open_trained(run, device=resolve_device("auto"), refine=refine)
    rows = open_rows(trained, corpus or (), n_rows, display)
    made_from = facts_of(rows)
    if (folder / store.MANIFEST).exists() and not again:
        changed = _difference(folder, made_from)
        if changed is None:
            display.say(f"{folder} is up to date")
            return open_index(folder)
        display.say(f"{folder} is out of date ({changed}) and is being rebuilt")
    make(
        folder, rows, made_from, budget=budget, display=display, batch_rows=batch_rows, shard_rows=shard_rows, again=again
    )
    return open_index(folder)


def make(
    folder: Path, rows: CorpusRows, made_from: dict[str, Any], *, budget: int, display: Display,
    batch_rows: int | None = None, shard_rows: int = SHARD_ROWS, again: bool = True,
) -> None:
    """Encode rows and write their index to `folder`, sharing the work with other processes; see `build`."""
    if batch_rows is None:
        width = sum(rows.data.source.widths[hook] for hook in rows.trained.site.hooks)
        batch_rows = min(65_536, max(BLOCK_ROWS, budget // 4 // (16 * width)))
    work = folder.with_name(f"{folder.name}.partial")
    plan = made_from | {
        "shard_seqs": shard_seqs(shard_rows, rows.n_ctx), "code": code_version(), "torch": torch.__version__,
    }
    with locked(folder, wait=True, say=display.say):
        if not again and (folder / store.MANIFEST).exists() and _difference(folder, made_from) is None:
            return  # another process has built it meanwhile
        begin(work, plan)
    with display.task("indexing: rows", rows.n_seqs * rows.n_ctx, "rows") as task:
        encode(
            rows, work, plan, batch_rows=batch_rows, shard_rows=shard_rows, advance=task.advance, skip=task.skip,
            say=display.say,
        )
    with locked(folder, wait=True, say=display.say):
        if not is_begun(work, plan):
            return  # another process has written the index
        codes = join_codes(work, plan)
        with atomic_dir(folder) as partial:
            write_index(partial, rows, codes, made_from, fidelity(rows, codes), budget, display)
        del codes
        clear(work)


def facts_of(rows: CorpusRows) -> dict[str, Any]:
    """All inputs that determine an index."""
    sae = rows.trained.sae
    return {
        "weights_sha256": read_json(rows.trained.folder / "final" / sae_store.MANIFEST)["weights_sha256"],
        "rows": rows.facts(),
        "settings": {
            "format_version": store.FORMAT_VERSION, "block_rows": BLOCK_ROWS, "max_pairs": MAX_PAIRS,
            # omitted if 0, so that indexes from before this setting stay valid
            **({"refine": rows.trained.refine} if rows.trained.refine else {}),
        },
        "encoded_by": {"kernels": sae.kernels.name, "device": sae.W_dec.device.type},
    }


def _difference(folder: Path, made_from: dict[str, Any]) -> str | None:
    """The first input of an index that has changed; None if it is up to date."""
    try:
        there = store.read_manifest(folder)["made_from"]
    except SaescopeError as error:
        return str(error)
    changed = first_difference(there, made_from)
    return None if changed is None else str(changed)


def checked_name(name: str) -> str:
    """Check that a name is a single folder name and not that of unfinished work."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) or name.endswith(".partial"):
        raise SaescopeError(f"{name!r} cannot name an index; use letters, digits, '.', '-', '_', for example 'wikipedia'.")
    return name


def memory_bytes(text: str | int) -> int:
    """Parse a size such as "1 GB", "512 MB" or a number of bytes."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kMGT])(i?)B?|B)?\s*", str(text))
    if match is None:
        raise SaescopeError(f"{text!r} is not an amount of memory; write for example '1 GB' or '512 MB'.")
    step = 1024 if match[3] else 1000
    size = int(float(match[1]) * step ** " kMGT".index(match[2] or " "))
    if size < 16_000_000:
        raise SaescopeError(f"{text!r} is too little memory for an index; give at least 16 MB.")
    return size


def write_index(
    folder: Path, rows: CorpusRows, codes: Codes, made_from: dict[str, Any], explained: dict[str, Any] | None, budget: int,
    display: Display,
) -> None:
    """Write everything that follows from the codes into a temporary folder; `explained` is their `fidelity`."""
    sae = rows.trained.sae
    writer = store.Writer(folder)
    signed = sae.select().absolute or any(bool((part < 0).any()) for part in np.array_split(codes.value, 16))
    kept = codes.kept
    tokens = rows.tokens
    writer.save("tokens", np.full((rows.n_seqs, rows.n_ctx), -1, np.int32) if tokens is None else tokens)
    writer.save("kept", kept.reshape(rows.n_seqs, rows.n_ctx))
    if (units := rows.data.tokens.units()).kind != "sequence":
        writer.save("unit", units.number[: rows.n_seqs].astype(np.int32))
    if (images := rows.data.tokens.images) is not None:
        writer.save("pixels", images.pixels[: rows.n_seqs])
        writer.save("boxes", images.boxes)
        writer.save("names", images.names[: rows.n_seqs])
    context = Context(
        rows.n_seqs, rows.n_ctx, 1 + signed, None if tokens is None else np.ascontiguousarray(tokens).reshape(-1), kept
    )
    with display.task("indexing: features", sae.d_sae, "features") as task:
        columns = write_columns(codes, context, sae.d_sae, writer, budget // 2, task.advance)
    decoder, coactive = _relate(sae, codes, columns, rows.n_ctx, writer, budget, display, signed=signed)
    unit = directions(sae)
    place = plane(decoder, unit)
    notes, texts, promoted = _vocabulary(folder, rows, unit, writer, budget, display)
    n_rows = int(kept.sum())
    norms = _decoder_norms(rows.trained.folder, sae)
    write_stats(folder / store.STATS, columns, n_rows, decoder, coactive, place, norms, texts, promoted)
    notes |= {
        "masked": f"{kept.size - n_rows} of {kept.size} rows are not encoded: BOS, special and padding tokens, and rows "
        "whose norm exceeds the outlier limit.",
        "coactivation": {"n_contexts": coactive.n_contexts, "n_rows": coactive.n_rows,
                         "sampled": coactive.n_contexts < rows.n_seqs},
        "decoder_norm": None if norms is not None else "the norms before saving are not known.",
    }
    write_json(folder / store.MANIFEST, {
        "format": store.FORMAT, "format_version": store.FORMAT_VERSION, "code": code_version(), "made_from": made_from,
        "about": _about(rows), "fidelity": explained, "signed": signed, "notes": notes,
        "counts": {"n_seqs": rows.n_seqs, "n_ctx": rows.n_ctx, "n_rows": n_rows, "d_sae": sae.d_sae,
                   "n_values": len(codes.value), "n_dead": int((np.diff(columns.indptr) == 0).sum())},
        "files": writer.facts(),
    })


def _about(rows: CorpusRows) -> dict[str, Any]:
    """Provenance of an index for display."""
    trained, config = rows.trained, rows.config
    return {
        "run": trained.folder.resolve().name, "variant": trained.sae.config.variant,
        "site": trained.site.model_dump(mode="json"),
        "model": None if config.model is None or config.corpus.acts_dir is not None else config.model.name,
        "corpus": [source.source for source in config.corpus.sources], "d_in": trained.sae.d_in, "d_out": trained.sae.d_out,
    }


def _relate(
    sae: SAE, codes: Codes, columns: Columns, n_ctx: int, writer: store.Writer, budget: int, display: Display, *,
    signed: bool,
) -> tuple[Decoder, Coactive]:
    """Compute and write decoder and co-activation neighbours."""
    decoder = decoder_neighbours(directions(sae), signed=signed, memory=budget // 4)
    writer.save("decoder_feature", decoder.feature)
    writer.save("decoder_cosine", decoder.cosine)
    position = np.load(writer.folder / "feature_position.npy", mmap_mode="r")
    with display.task("indexing: what fires together", sae.d_sae, "features") as task:
        coactive = coactivation(codes, np.asarray(position), columns.indptr, n_ctx, task.advance)
    writer.save("coactive_feature", coactive.feature)
    writer.save("coactive_jaccard", coactive.jaccard)
    writer.save("coactive_pearson", coactive.pearson)
    return decoder, coactive


def _vocabulary(
    folder: Path, rows: CorpusRows, unit: Float[torch.Tensor, "d_sae d_out"], writer: store.Writer, budget: int,
    display: Display,
) -> tuple[dict[str, Any], list[str] | None, np.ndarray | None]:
    """Write the vocabulary and each feature's promoted tokens if the model is available; else note the reason."""
    try:
        model = rows.model()
    except SaescopeError as error:
        return {"vocabulary": str(error), "promoted": str(error)}, None, None
    vocabulary = Vocabulary(token_bytes(model.tokenizer))
    store.write_vocabulary(folder / store.VOCABULARY, vocabulary)
    texts = [vocabulary.text(i) for i in range(len(vocabulary.tokens))]
    reason = _promote(rows, unit, model, writer, budget)
    if reason is not None:
        display.say(f"no promoted tokens: {reason}")
        return {"vocabulary": None, "promoted": reason}, texts, None
    return {"vocabulary": None, "promoted": None}, texts, np.load(folder / "promoted_token.npy")


def _promote(
    rows: CorpusRows, unit: Float[torch.Tensor, "d_sae d_out"], model: Model, writer: store.Writer, budget: int
) -> str | None:
    """Write promoted and suppressed tokens; return the reason if there are none."""
    reason = not_read_by_unembedding(rows.trained.site.output, rows.trained.sae.d_out, model)
    if reason is not None:
        return reason
    try:
        ids, logits = promoted_tokens(model, unit, memory=budget // 4)
    except SaescopeError as error:
        return str(error)
    writer.save("promoted_token", ids)
    writer.save("promoted_logit", logits)
    return None


def _decoder_norms(run: Path, sae: SAE) -> np.ndarray | None:
    """Decoder norms at the end of training, from the last checkpoint; 1 if training keeps them at 1.

    Saved decoder rows always have unit norm, so only a checkpoint has the original norms.
    """
    if type(sae).unit_norm_decoder and "imported" not in sae.provenance:
        return np.ones(sae.d_sae)
    for place in (run, run.parent):
        for state_path in sorted((place / "checkpoints").glob("**/step-*/state.json"), reverse=True):
            state = read_json(state_path)
            summary = run / "summary.json"
            final = summary.exists() and read_json(summary).get("n_steps") == state.get("n_steps")
            ours = [i for i, member in enumerate(state.get("members", ())) if run.as_posix().endswith(member)]
            if final and len(ours) == 1:
                tensors = read_tensors(state_path.parent / f"{ours[0]:03d}.safetensors")
                return tensors["sae.W_dec"].float().norm(dim=1).numpy()
    return None
