"""What names a source of documents in a config."""

import difflib

from pydantic import Field, model_validator

from sae.section import Section

MODULE = "module"
"""The kind of source that is a module of the user's own and what it is fed (`training.model.feed`)."""
TENSORS = "tensors"
"""The source of a training on rows that were given in Python."""
_BUILT_IN = ("python-stdlib", "simple-sentences")
_ALONE = (*_BUILT_IN, TENSORS)
_KINDS = ("text", "jsonl", "parquet", "datasets", "acts", MODULE)
_TEXT_SPLITS = (None, "file", "blank-line", "line")


class TextSource(Section):
    """One source of text."""

    source: str
    """`python-stdlib`, `simple-sentences` (short English ones), `text:PATH`, `jsonl:PATH`, `parquet:PATH` (a path may hold
    `*`, `?`, `[abc]` and `**`; hidden files only where the pattern begins with a dot; texts and JSON lines may be
    compressed: .gz, .bz2, .zst), `datasets:NAME` (of the hub, or a local folder or file), `acts:DIR` (activations of your
    own, no text), `module:PACKAGE.FUNCTION` (any torch module with your own inputs), or `tensors` (activations of your own,
    given in Python to `training.train_on`)."""
    weight: float = Field(default=1.0, gt=0)
    """Share of a mixture's documents that come from here, relative to the other weights."""
    field: str = "text"
    """Column or key that holds the text, or with `chat_roles` the messages; dots lead inside: `turns.0.text`."""
    label_field: str | None = None
    """Column or key, as in `field`, whose value labels a document; null, here or there, labels it by file and row."""
    subset: str | None = None
    """Configuration of a `datasets` source."""
    split: str | None = None
    """Of `datasets:` the split, by default `train`. Of `text:` what a document is: `file`, `blank-line` or `line`."""
    streaming: bool = True
    """Whether a `datasets` source is read as it arrives (true) or downloaded whole first."""
    revision: str | None = None
    """Branch, tag or commit of a `datasets` source."""
    chat_roles: tuple[str, ...] | None = None
    """Roles of a conversation to train on, such as [assistant]; `field` then holds messages of role and content (or of
    from and value, where human is user and gpt assistant)."""

    @model_validator(mode="after")
    def _known(self) -> "TextSource":
        if self.kind not in (*_ALONE, *_KINDS) or (self.kind in _KINDS and not self.rest):
            near = difflib.get_close_matches(self.source.partition(":")[0], [*_BUILT_IN, *_KINDS], n=1)
            hint = f", did you mean {near[0]}{':...' if near[0] in _KINDS else ''}?" if near else ""
            raise ValueError(
                f"{self.source!r} is no source{hint}; write python-stdlib, simple-sentences, text:PATH, jsonl:PATH, "
                f"parquet:PATH, datasets:NAME, acts:DIR or module:PACKAGE.FUNCTION"
            )
        self._check_fields()
        return self

    def _check_fields(self) -> None:
        if self.kind != "datasets" and (self.subset is not None or self.revision is not None):
            raise ValueError(f"subset and revision belong to datasets:NAME, not to {self.source}")
        if self.kind in (*_BUILT_IN, "jsonl", "parquet") and self.split is not None:
            raise ValueError(f"split belongs to text: and datasets:, not to {self.source}")
        if self.kind == "text" and self.split not in _TEXT_SPLITS:
            raise ValueError(f"split of a text: source is file, blank-line or line, not {self.split!r}")
        if self.chat_roles is not None and (self.kind in (*_BUILT_IN, "text") or not self.chat_roles):
            raise ValueError("chat_roles names at least one role and belongs to jsonl:, parquet: and datasets:")

    @property
    def kind(self) -> str:
        """What stands before the colon."""
        return self.source.partition(":")[0]

    @property
    def rest(self) -> str:
        """What stands behind the colon: a path or a name."""
        return self.source.partition(":")[2]
