"""Config keys that were set but have no effect on the run."""

from training.config.schema import Config, CorpusConfig
from training.config.text_source import TENSORS


def unused(config: Config) -> str | None:
    """A message about the first key that has no effect, or None; keys at their defaults are ignored.

    Only for new runs: the config.yaml saved in a run has every key.
    """
    corpus, usual = config.corpus, CorpusConfig()
    own = corpus.acts_dir is not None or corpus.sources[0].source == TENSORS
    named = own or corpus.module is not None
    drawn = (corpus.sources[0].source if named else "corpus.synthetic") if named or corpus.synthetic else None
    if own and corpus.n_tokens != usual.n_tokens:
        return f"corpus.n_tokens = {corpus.n_tokens:,} has no effect: all rows of {drawn} are used; remove it."
    if corpus.held_out_rows and corpus.held_out != usual.held_out:
        return f"corpus.held_out = {corpus.held_out} has no effect with corpus.held_out_rows; remove one of them."
    if drawn and corpus.seed != usual.seed:
        return f"corpus.seed = {corpus.seed} has no effect: {drawn} doesn't sample documents; remove it."
    if corpus.synthetic and corpus.sources != usual.sources:
        return f"corpus.sources = {corpus.sources[0].source} has no effect with corpus.synthetic; remove one of them."
    return None
