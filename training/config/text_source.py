"""The config of one source of documents or rows."""

import difflib

from pydantic import Field, model_validator

from sae.section import Section

MODULE = "module"
"""The source kind for the user's own torch module with its inputs (`training.model.feed`)."""
TENSORS = "tensors"
"""The source of a run on rows passed in from Python."""
_BUILT_IN = ("python-stdlib", "simple-sentences")
_ALONE = (*_BUILT_IN, TENSORS)
_KINDS = ("text", "jsonl", "parquet", "datasets", "acts", MODULE)
_TEXT_SPLITS = (None, "file", "blank-line", "line")


class TextSource(Section):
    """One source of text."""

    source: str
    """`python-stdlib`, `simple-sentences` (short English sentences), `text:PATH`, `jsonl:PATH`, `parquet:PATH` (PATH may
    be a glob with `*`, `?`, `[abc]` and `**`, which matches hidden files only if it starts with a dot; text and JSON lines
    may be compressed: .gz, .bz2, .zst), `datasets:NAME` (from the hub, or a local folder or file), `acts:DIR` (your own
    activations, no text), `module:PACKAGE.FUNCTION` (any torch module with your own inputs), or `tensors` (your own
    activations, passed to `training.train_on` in Python)."""
    weight: float = Field(default=1.0, gt=0)
    """Sampling weight in a mixture, per document, relative to the other weights."""
    field: str = "text"
    """Column or key with the text, or with the messages if `chat_roles` is set; dots reach into it: `turns.0.text`."""
    label_field: str | None = None
    """Column or key, as in `field`, whose value labels a document; if it is null, file and row are the label."""
    subset: str | None = None
    """Configuration name of a `datasets` source."""
    split: str | None = None
    """For `datasets:`, the split, by default `train`. For `text:`, what a document is: `file`, `blank-line` or `line`."""
    streaming: bool = True
    """Whether a `datasets` source is streamed (true) or downloaded completely first."""
    revision: str | None = None
    """Branch, tag or commit of a `datasets` source."""
    chat_roles: tuple[str, ...] | None = None
    """Chat roles to train on, such as [assistant]; `field` then holds messages with role and content (or from and value,
    where human means user and gpt means assistant)."""

    @model_validator(mode="after")
    def _known(self) -> "TextSource":
        if self.kind not in (*_ALONE, *_KINDS) or (self.kind in _KINDS and not self.rest):
            near = difflib.get_close_matches(self.source.partition(":")[0], [*_BUILT_IN, *_KINDS], n=1)
            hint = f", did you mean {near[0]}{':...' if near[0] in _KINDS else ''}?" if near else ""
            raise ValueError(
                f"{self.source!r} is not a source{hint}; use python-stdlib, simple-sentences, text:PATH, jsonl:PATH, "
                f"parquet:PATH, datasets:NAME, acts:DIR or module:PACKAGE.FUNCTION"
            )
        self._check_fields()
        return self

    def _check_fields(self) -> None:
        if self.kind != "datasets" and (self.subset is not None or self.revision is not None):
            raise ValueError(f"subset and revision only apply to datasets:NAME, not to {self.source}")
        if self.kind in (*_BUILT_IN, "jsonl", "parquet") and self.split is not None:
            raise ValueError(f"split only applies to text: and datasets:, not to {self.source}")
        if self.kind == "text" and self.split not in _TEXT_SPLITS:
            raise ValueError(f"split of a text: source must be file, blank-line or line, not {self.split!r}")
        if self.chat_roles is not None and (self.kind in (*_BUILT_IN, "text") or not self.chat_roles):
            raise ValueError("chat_roles needs at least one role and only applies to jsonl:, parquet: and datasets:")

    @property
    def kind(self) -> str:
        """The part before the colon."""
        return self.source.partition(":")[0]

    @property
    def rest(self) -> str:
        """The part after the colon: a path or a name."""
        return self.source.partition(":")[2]
