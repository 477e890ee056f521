"""The index of a run over a corpus: made in one pass, and every question about features is answered from it.

    from analysis.index import build, open_index
    index = build("runs/quickstart")          # or open_index("runs/quickstart/index/default")
    index.feature(12), index.examples(12), index.where(12, 40), index.top("kurtosis")
"""
