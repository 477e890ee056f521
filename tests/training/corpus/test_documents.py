import bz2
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from sae.errors import SaescopeError
from training.config.text_source import TextSource
from training.corpus.document import Document
from training.corpus.documents import documents, identity
from training.corpus.files import files_of, matching
from training.corpus.stdlib import cut, stdlib_pieces

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` prepares goes to the test's folder; no test may reach a hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(*sources: TextSource | str, seed: int = 0) -> list[Document]:
    return list(documents([TextSource(source=s) if isinstance(s, str) else s for s in sources], seed))


# --- text


def compress(path: Path, data: bytes) -> Path:
    """The data in two frames behind one another, as parallel compressors write them."""
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": partial(pa.compress, codec="zstd", asbytes=True)}
    path.write_bytes(b"".join(pack[path.suffix](part) for part in (data[:7], data[7:])))
    return path


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_compressed_files_are_what_they_hold(tmp_path, suffix):
    text, rows = "one\ntwo\n\nthree é\n", b'{"text": "a"}\n{"text": "b"}\n'
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    plain = TextSource(source=f"text:{tmp_path}/a.txt", split="line")
    packed = TextSource(source=f"text:{compress(tmp_path / f'a.txt{suffix}', text.encode())}", split="line")
    assert [d.text for d in read(packed)] == [d.text for d in read(plain)] == ["one", "two", "three é"]
    assert identity([packed]) == identity([plain]), "the same corpus"
    compress(tmp_path / f"b.jsonl{suffix}", rows)
    assert [d.text for d in read(f"jsonl:{tmp_path}/*.jsonl{suffix}")] == ["a", "b"]
    if suffix != ".zst":  # which `datasets` reads with a package that is not asked for
        assert [d.text for d in read(f"datasets:{tmp_path}/b.jsonl{suffix}")] == ["a", "b"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_compressed_files_that_are_damaged(tmp_path, suffix):
    whole = compress(tmp_path / f"a.txt{suffix}", b"some text\n" * 50)
    for data in (b"no such thing", whole.read_bytes()[:-6]):
        whole.write_bytes(data)
        with pytest.raises(SaescopeError, match=rf"a\.txt{suffix} cannot be read \(.*download or compress it again"):
            read(f"text:{whole}")
        with pytest.raises(SaescopeError, match="cannot be read"):
            identity([TextSource(source=f"text:{whole}")])


def test_a_text_file_is_a_document(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name},\r\nné\n", encoding="utf-8-sig")
    found = read(f"text:{tmp_path}/**/*.txt")
    assert [d.label for d in found] == ["a.txt", "b.txt", "deep/c.txt"]
    assert found[0].text == "Text of a.txt,\nné\n"
    assert [d.label for d in read(f"text:{tmp_path}/b.txt")] == ["b.txt"]


def test_relative_patterns(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert [d.label for d in read("text:*.txt")] == ["a.txt"]


def test_a_text_file_in_paragraphs_or_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\none\ntwo\n\n \nthree\n")
    by_paragraph = read(TextSource(source=f"text:{tmp_path}/a.txt", split="blank-line"))
    assert [(d.text, d.label) for d in by_paragraph] == [("one\ntwo", "a.txt:2"), ("three", "a.txt:6")]
    by_line = read(TextSource(source=f"text:{tmp_path}/a.txt", split="line"))
    assert [(d.text, d.label) for d in by_line] == [("one", "a.txt:2"), ("two", "a.txt:3"), ("three", "a.txt:6")]


def test_bad_text_files(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"good\nna\xefve\n")
    with pytest.raises(SaescopeError, match=r"latin\.txt, line 2: not UTF-8.*0xef"):
        read(f"text:{tmp_path}/latin.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(SaescopeError, match="contains no text"):
        read(f"text:{tmp_path}/empty.txt")
    with pytest.raises(SaescopeError, match="no such file"):
        read(f"text:{tmp_path}/missing.txt")
    with pytest.raises(SaescopeError, match=r"is a folder; give its files"):
        read(f"text:{tmp_path}")


def test_patterns_mean_what_they_do_in_a_shell(tmp_path):
    names = ["a.txt", "b.txt", ".env", ".DS_Store", "deep/c.txt", "deep/.d.txt", "deep/er/e.txt", ".git/f.txt", "x[1].txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff" if name == ".DS_Store" else name.encode())
    (tmp_path / "loop").symlink_to(tmp_path)
    expected = {
        "*": ["a.txt", "b.txt", "x[1].txt"], "*.txt": ["a.txt", "b.txt", "x[1].txt"], "?.txt": ["a.txt", "b.txt"],
        "[!a].txt": ["b.txt"], "x[[]1].txt": ["x[1].txt"], "x[1].txt": ["x[1].txt"],
        "**": ["a.txt", "b.txt", "deep/c.txt", "deep/er/e.txt", "x[1].txt"],
        "**/*.txt": ["a.txt", "b.txt", "deep/c.txt", "deep/er/e.txt", "x[1].txt"],
        "deep/**/e.txt": ["deep/er/e.txt"], "*/*.txt": ["deep/c.txt", "loop/a.txt", "loop/b.txt", "loop/x[1].txt"],
        ".e*": [".env"], ".git/*": [".git/f.txt"], "deep/.*": ["deep/.d.txt"], ".env": [".env"],
    }
    for pattern, found in expected.items():
        files = files_of(TextSource(source=f"text:{tmp_path}/{pattern}"))
        assert [file.relative_to(tmp_path).as_posix() for file in files] == found, pattern
    for pattern in ("*.md", "none/*", "none/**", "a.txt/*"):
        with pytest.raises(SaescopeError, match="no such file"):
            files_of(TextSource(source=f"text:{tmp_path}/{pattern}"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="compares with bash")
def test_patterns_are_bashs(tmp_path):
    for name in ("a", ".b", "c/d", "c/.e", "c/f/g", ".h/i", "c/[j]"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for pattern in ("*", ".*", "**", "**/*", "c/**", "**/g", "*/*", "*/.e", "c/[[]*", "[ac]", "[!a]*", "c/**/*"):
        said = subprocess.run(
            ["bash", "-O", "globstar", "-O", "nullglob", "-c", f'for f in {pattern}; do [ -f "$f" ] && echo "$f"; done'],
            cwd=tmp_path, capture_output=True, text=True,
        ).stdout.split()
        ours = [file.relative_to(tmp_path).as_posix() for file in matching(tmp_path / pattern) if file.is_file()]
        assert sorted(set(said)) == sorted(ours), pattern


def test_a_link_that_leads_nowhere_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    for pattern in ("*", "**/*.txt", "b.txt"):
        with pytest.raises(SaescopeError, match=r"b\.txt is a link to .*gone"):
            files_of(TextSource(source=f"text:{tmp_path}/{pattern}"))


# --- rows


ROWS = [{"text": "one", "title": "A", "n": 1}, {"text": "two", "title": "B", "n": 2}, {"text": None, "title": "", "n": 3}]


@pytest.fixture(params=["jsonl", "parquet", "datasets file", "datasets folder", "datasets saved", "datasets whole"])
def rows_source(request, tmp_path):
    path = write_jsonl(tmp_path / "data" / "rows.jsonl", ROWS)
    if request.param == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
        return {"source": f"parquet:{tmp_path}/*.parquet"}
    if request.param == "datasets saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        return {"source": f"datasets:{tmp_path}/saved"}
    name = {"jsonl": f"jsonl:{path}", "datasets file": f"datasets:{path}"}.get(request.param, f"datasets:{path.parent}")
    return {"source": name, "streaming": False} if request.param == "datasets whole" else {"source": name}


def test_rows_of_every_kind(rows_source):
    assert [d.text for d in read(TextSource(**rows_source))] == ["one", "two"]
    found = read(TextSource(**rows_source, field="title", label_field="n"))
    assert [(d.text, d.label) for d in found] == [("A", "1"), ("B", "2")]
    with pytest.raises(SaescopeError, match="no field 'body'; it has text, title, n"):
        read(TextSource(**rows_source, field="body"))
    with pytest.raises(SaescopeError, match="'n' is not text but a int"):
        read(TextSource(**rows_source, field="n"))


def test_rows_are_labelled_by_where_they_stand(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert [d.label for d in read(f"jsonl:{path}")] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert [d.label for d in read(f"datasets:{path}")] == ["row 0", "row 1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{bad", "line 2: not JSON"), ("[1]", "line 2: expected a JSON object, found list"),
     ('{"text": ["a"]}', "line 2: 'text' is not text but a list; for messages set chat_roles")],
)
def test_bad_lines_are_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(SaescopeError, match=message):
        read(f"jsonl:{tmp_path}/a.jsonl")


@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "1" * 5000], ids=["nested", "long"])
def test_json_beyond_what_is_read_is_named(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{{"text": "fine", "n": {value}}}\n')
    with pytest.raises(SaescopeError, match=r"a\.jsonl, line 2"):
        read(f"jsonl:{tmp_path}/a.jsonl")


def write_parquet(path: Path, **columns: list | pa.Array) -> None:
    pq.write_table(pa.table(columns), path)


def test_of_parquet_only_the_columns_asked_for_are_read(tmp_path):
    write_parquet(tmp_path / "0.parquet", text=pa.array([], pa.string()), n=pa.array([], pa.int64()))
    write_parquet(tmp_path / "1.parquet", text=pa.nulls(2), n=[1, 2])
    write_parquet(tmp_path / "x [1].parquet", n=["one"], text=pa.array(["a"], pa.large_string()), other=[{"deep": [1]}])
    write_parquet(tmp_path / "y.parquet", text=pa.array(["b", None, "c"]).dictionary_encode(), id=[True, False, None])
    found = read(f"parquet:{tmp_path}/*.parquet")
    assert [(d.text, d.label) for d in found] == [("a", "row 2"), ("b", "row 3"), ("c", "row 5")]
    assert [d.text for d in read(f"parquet:{tmp_path}/x [1].parquet")] == ["a"]
    write_parquet(tmp_path / "z.parquet", body=["d"], n=[1])
    with pytest.raises(SaescopeError, match=r"z\.parquet: no field 'text'; it has body, n"):
        read(f"parquet:{tmp_path}/*.parquet")
    data = (tmp_path / "y.parquet").read_bytes()
    (tmp_path / "z.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(SaescopeError, match=r"z\.parquet cannot be read"):
        read(f"parquet:{tmp_path}/*.parquet")
    write_parquet(tmp_path / "z.parquet", text=[b"bytes"])
    with pytest.raises(SaescopeError, match=r"z\.parquet, row 0: 'text' is not text but a bytes"):
        read(f"parquet:{tmp_path}/*.parquet")


def test_fields_of_parquet_may_be_dotted(tmp_path):
    write_parquet(tmp_path / "a.parquet", **{"turns": [[{"text": "a"}], [{"text": "b"}]], "x.y": ["x", "y"]})
    for field, label in (("turns.0.text", "x.y"), ("x.y", "turns.0.text"), ("turns.0.text", "turns.0.text")):
        found = read(TextSource(source=f"parquet:{tmp_path}/a.parquet", field=field, label_field=label))
        values = {"turns.0.text": ("a", "b"), "x.y": ("x", "y")}
        assert [(d.text, d.label) for d in found] == list(zip(values[field], values[label], strict=True))
    with pytest.raises(SaescopeError, match=r"a\.parquet: no field 'turn\.0\.text'; it has turns, x\.y"):
        read(TextSource(source=f"parquet:{tmp_path}/a.parquet", field="turn.0.text"))


def test_messages_in_parquet_are_those_in_jsonl(tmp_path):
    rows = [{"chat": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "n": i} for i in range(2)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    found = [
        [(d.text, d.messages) for d in read(TextSource(source=source, field="chat", chat_roles=("assistant",)))]
        for source in (f"parquet:{tmp_path}/a.parquet", f"jsonl:{path}")
    ]
    assert found[0] == found[1] and len(found[0]) == 2


def test_lone_surrogates_do_not_reach_the_tokenizer(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d"}\n')
    assert [d.text for d in read(f"jsonl:{tmp_path}/a.jsonl")] == ["half ?"]


def test_bad_parquet_and_bad_splits(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(SaescopeError, match=r"a\.parquet cannot be read"):
        read(f"parquet:{tmp_path}/a.parquet")
    write_jsonl(tmp_path / "data" / "rows.jsonl", ROWS)
    with pytest.raises(SaescopeError, match=r"split.*check subset, split"):
        read(TextSource(source=f"datasets:{tmp_path}/data", split="tset"))
    with pytest.raises(SaescopeError, match="no such file"):
        read(f"datasets:{tmp_path}/missing")


def test_a_hub_dataset_without_a_hub_names_what_needs_none():
    code = (
        "from training.corpus.documents import documents\n"
        "from training.config.text_source import TextSource\n"
        "from sae.errors import SaescopeError\n"
        "try:\n    next(documents([TextSource(source='datasets:nobody/nothing', streaming=False)]))\n"
        "except SaescopeError as error:\n    print(error)\n"
    )
    # the second run finds a port at which nobody listens
    for settings in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        environment = {**os.environ, **settings}
        answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                                timeout=60, check=True)
        assert "datasets:nobody/nothing cannot be read" in answer.stdout
        assert "python-stdlib, text:PATH, jsonl:PATH and parquet:PATH need no hub" in answer.stdout


# --- conversations


def test_messages_and_roles(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}])
    for name in (f"jsonl:{path}", f"datasets:{path}"):
        [found] = read(TextSource(source=name, field="messages", chat_roles=("assistant",)))
        assert found.messages == tuple(turns)
        assert found.roles == ("assistant",)
        assert found.split_key == "user: hi\n\nassistant: hello"


@pytest.mark.parametrize("value", ["hi", [{"role": "user"}], [{"role": "user", "content": [{"image": 1}]}], ["hi"]])
def test_what_is_not_messages_is_refused(tmp_path, value):
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": value}])
    with pytest.raises(SaescopeError, match="line 1: 'messages' does not contain messages"):
        read(TextSource(source=f"jsonl:{path}", field="messages", chat_roles=("assistant",)))


# --- mixtures


def test_mixtures_keep_their_proportions_and_go_on_when_one_ends(tmp_path):
    for name, n in (("a", 3000), ("b", 3000), ("c", 20)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(n)])
    a, b, c = (f"jsonl:{tmp_path}/{name}.jsonl" for name in "abc")
    sources = [TextSource(source=a, weight=3), TextSource(source=b), TextSource(source=c, weight=0.5)]
    mixed = list(documents(sources, seed=1))
    assert len(mixed) == 6020
    assert len({d.text for d in mixed}) == 6020
    counts = Counter(d.text[0] for d in mixed[1000:3000])
    assert counts["a"] / counts["b"] == pytest.approx(3, rel=0.15)
    assert [d.text for d in mixed if d.text[0] == "a"][:3] == ["a 0", "a 1", "a 2"]
    assert mixed[-1].label == f"{b}: b.jsonl:3000"
    assert mixed == list(documents(sources, seed=1))
    assert mixed != list(documents(sources, seed=2))


def test_a_missing_part_of_a_mixture_is_found_first(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(SaescopeError, match=r"missing\.jsonl: no such file"):
        next(documents([TextSource(source=f"jsonl:{path}"), TextSource(source=f"jsonl:{tmp_path}/missing.jsonl")]))


# --- the built-in corpus


def test_the_standard_library_is_long_varied_and_of_both_kinds():
    found = read("python-stdlib")
    assert sum(len(d.text) for d in found) > 4_000_000
    assert min(len(d.text) for d in found) > 500
    first = found[:150]
    assert len({d.group for d in first}) > 90
    assert sum("docstrings" in d.label for d in first) > 15
    assert not any(word in d.group for d in found for word in ("/test/", "idlelib", "site-packages", "_sysconfigdata"))
    group = {d.label: d.group for d in found}
    assert group["json/decoder.py:1"] == group["json/decoder.py docstrings"] == "python-stdlib/json/decoder.py"
    manual = [d.text for d in found if d.group == "python-stdlib/pydoc_data/topics.py"]
    assert any('The "with" statement\n***' in text for text in manual)


def test_the_seed_orders_the_pieces_and_tables_and_tests_are_left_out(tmp_path, monkeypatch):
    body = '"""A module. """\n' + "x = 'a long line of no meaning'\n\n" * 600
    for name in ("a.py", "b/c.py", "test/d.py", "b/tests/e.py", "site-packages/f.py", "_sysconfigdata_x.py", "bad.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(body if name != "bad.py" else body + "def")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    first, other = ([piece.label for piece in stdlib_pieces(seed)] for seed in (0, 1))
    assert first != other
    assert sorted(first) == sorted(other)
    assert {label.partition(":")[0] for label in first} == {"a.py", "b/c.py"}
    assert len(first) == len(set(first)) > 4
    (tmp_path / "a.py").unlink()
    assert [piece.label for piece in stdlib_pieces(0)] == [label for label in first if not label.startswith("a.py")]


def test_pieces_of_a_text_make_it_whole_and_know_their_lines():
    text = "\n".join(f"line {i}" + "\n" * (i % 5 == 0) for i in range(1, 2000))
    pieces = cut(text, 2000)
    assert "".join(piece for _, piece in pieces) == text
    assert len(pieces) > 4
    lines = text.split("\n")
    assert all(piece.startswith(lines[line - 1]) for line, piece in pieces)
    assert cut("short", 2000) == []


def test_other_processes_make_the_same_tokens():
    code = (
        "import hashlib\n"
        "from tests.training.corpus.toy_tokenizer import make_tokenizer\n"
        "from training.corpus.documents import documents\n"
        "from training.config.text_source import TextSource\n"
        "from training.corpus.packing import pack\n"
        "t = make_tokenizer()\n"
        "p = pack(documents([TextSource(source='python-stdlib')]), t, n_ctx=128, n_tokens=200_000, prepend_bos=True,"
        " bos_id=0, special_ids=frozenset({0, 1}), held_out=0.1)\n"
        "print(hashlib.sha256(p.tokens.tobytes() + p.segments.tobytes()).hexdigest())\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env={**os.environ, "PYTHONHASHSEED": seed}, text=True)
        for seed in ("1", "2")
    ]
    answers = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], answers
    assert answers[0] == answers[1]
    assert answers[0][1] == "", "nothing is said on stderr"


# --- identity and config


def test_identity_follows_content_and_not_place(tmp_path):
    one = write_jsonl(tmp_path / "one" / "a.jsonl", ROWS)
    two = write_jsonl(tmp_path / "two" / "b.jsonl", ROWS)
    first, second = (identity([TextSource(source=f"jsonl:{path}")]) for path in (one, two))
    assert first == second
    assert first != identity([TextSource(source=f"jsonl:{one}", field="title")])
    write_jsonl(two, ROWS[:2])
    assert first != identity([TextSource(source=f"jsonl:{two}")])
    json.dumps(identity([TextSource(source=f"datasets:{tmp_path}/one"), TextSource(source="python-stdlib")]))


def test_identity_of_the_standard_library_and_the_hub():
    [stdlib, hub] = identity([TextSource(source="python-stdlib"), TextSource(source="datasets:org/name", subset="en")])[
        "sources"
    ]
    assert stdlib["python"] == sys.version.split()[0]
    assert (hub["name"], hub["subset"], hub["split"]) == ("org/name", "en", "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "jsnl:a"}, "did you mean jsonl:"),
        ({"source": "python-stdlb"}, "did you mean python-stdlib"),
        ({"source": "text:"}, "is not a source"),
        ({"source": "text:a", "subset": "en"}, "subset and revision only apply to datasets:NAME"),
        ({"source": "jsonl:a", "split": "test"}, "split only applies to text: and datasets:"),
        ({"source": "text:a", "split": "words"}, "file, blank-line or line"),
        ({"source": "text:a", "chat_roles": ["user"]}, "chat_roles .*only applies to jsonl:"),
        ({"source": "jsonl:a", "chat_roles": []}, "chat_roles needs at least one role"),
        ({"source": "jsonl:a", "weight": 0}, "greater than 0"),
        ({"source": "jsonl:a", "feild": "x"}, "Extra inputs"),
    ],
)
def test_bad_sources_are_refused_with_a_hint(fields, message):
    with pytest.raises(ValidationError, match=message):
        TextSource(**fields)


def test_activations_are_no_text():
    with pytest.raises(SaescopeError, match="activations, not text"):
        read("acts:somewhere")


# --- what rows hold


def test_dots_lead_inside_rows(tmp_path):
    rows = [{"meta": {"id": 7}, "turns": [{"text": "one"}, {"text": "two"}], "a.b": "whole"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)

    def texts(**fields):
        return [(d.text, d.label) for d in read(TextSource(source=f"jsonl:{path}", **fields))]

    assert texts(field="turns.1.text", label_field="meta.id") == [("two", "7")]
    assert texts(field="a.b") == [("whole", "a.jsonl:1")]
    for field, facts in (("meta.name", "has id"), ("turns.2.text", "no '2'"), ("turns.x", "no 'x'"), ("b", "has meta")):
        with pytest.raises(SaescopeError, match=facts):
            texts(field=field)


def test_conversations_in_the_form_of_sharegpt(tmp_path):
    theirs = [{"from": "system", "value": "be"}, {"from": "human", "value": "and?"}, {"from": "gpt", "value": "no", "w": 1}]
    ours = [{"role": r, "content": m["value"]} for r, m in zip(("system", "user", "assistant"), theirs, strict=True)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"c": {"d": theirs}}, {"c": {"d": ours}}])
    for roles in (["assistant"], ["gpt"]):
        first, second = read(TextSource(source=f"jsonl:{path}", field="c.d", chat_roles=roles))
        assert first._replace(label="") == second._replace(label="")
        assert list(first.messages) == ours and first.roles == ("assistant",)
    bad = write_jsonl(tmp_path / "b.jsonl", [{"c": [{"from": "gpt", "value": 3}]}])
    with pytest.raises(SaescopeError, match="from and value"):
        read(TextSource(source=f"jsonl:{bad}", field="c", chat_roles=["assistant"]))
