"""What a config sets that its training would not look at."""

from training.config.schema import Config, CorpusConfig
from training.config.text_source import TENSORS


def unused(config: Config) -> str | None:
    """One sentence about a key that does not apply, if there is one; a key at its default says nothing.

    Asked of a new training only: a run's own config.yaml has every key.
    """
    corpus, usual = config.corpus, CorpusConfig()
    own = corpus.acts_dir is not None or corpus.sources[0].source == TENSORS
    named = own or corpus.module is not None
    drawn = (corpus.sources[0].source if named else "corpus.synthetic") if named or corpus.synthetic else None
    if own and corpus.n_tokens != usual.n_tokens:
        return f"corpus.n_tokens = {corpus.n_tokens:,} does not apply: all rows of {drawn} are taken; leave it out."
    if corpus.held_out_rows and corpus.held_out != usual.held_out:
        return f"corpus.held_out = {corpus.held_out} does not apply beside corpus.held_out_rows; give one of them."
    if drawn and corpus.seed != usual.seed:
        return f"corpus.seed = {corpus.seed} does not apply: {drawn} draws no documents; leave it out."
    if corpus.synthetic and corpus.sources != usual.sources:
        return f"corpus.sources = {corpus.sources[0].source} does not apply beside corpus.synthetic; give one of them."
    return None
