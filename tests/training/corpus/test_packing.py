import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.errors import SaescopeError
from tests.training.corpus.toy_tokenizer import TEMPLATE, make_tokenizer
from training.config.reading import resolve
from training.config.text_source import TextSource
from training.corpus import documents as corpus
from training.corpus.document import Document
from training.corpus.packing import Packed, is_held_out, pack, parts
from training.model.load import load_model

TOKENIZER = make_tokenizer()
CHAT = make_tokenizer(TEMPLATE)
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
SPECIAL = frozenset({BOS, EOS})
TEXTS = st.lists(st.text(alphabet="the cat\n<bos>é", min_size=1, max_size=60), min_size=1, max_size=25)


def packed(documents: list[Document], *, n_ctx: int, n_tokens: int, bos: bool, **options) -> Packed:
    tokenizer = options.pop("tokenizer", TOKENIZER)
    return pack(
        documents, tokenizer, n_ctx=n_ctx, n_tokens=n_tokens, prepend_bos=bos, bos_id=BOS, special_ids=SPECIAL, **options
    )


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


HELD = next(key for key in map(str, range(99)) if is_held_out(key, 0.3))
TRAIN = next(key for key in map(str, range(99)) if not is_held_out(key, 0.5))


def filler(n: int) -> list[Document]:
    """Documents on either side in turn, held out first."""
    return [
        Document(f"the cat {i} sat on the mat and the dog sat on the log", f"filler {i}", group=(HELD, TRAIN)[i % 2])
        for i in range(n)
    ]


def by_document(result: Packed) -> dict[str, list[int]]:
    flat = result.tokens.reshape(-1)
    found: dict[str, list[int]] = {}
    for first, n, number in result.segments:
        found.setdefault(result.labels[number]["label"], []).extend(flat[first : first + n].tolist())
    return found


@given(TEXTS, st.integers(2, 12), st.integers(25, 45), st.booleans(), st.sampled_from([0.3, 0.5]))
@settings(deadline=None, max_examples=80)
def test_every_row_has_one_owner_and_documents_can_be_read_back(texts, n_ctx, n_seqs, bos, share):
    documents = [Document(text, f"doc {i}", group=f"group {i}") for i, text in enumerate(texts)]
    documents = filler(2) + documents + filler(80)[2:]
    result = packed(documents, n_ctx=n_ctx, n_tokens=n_seqs * n_ctx + 1, bos=bos, held_out=share)
    assert result.tokens.shape == (n_seqs, n_ctx)
    assert result.tokens.dtype == np.int32

    owners = np.zeros(result.tokens.size, dtype=int)
    for first, n, number in result.segments:
        owners[first : first + n] += 1
        seqs = {first // n_ctx, (first + n - 1) // n_ctx}
        assert len(seqs) == 1, "a segment lies in one sequence"
        assert result.held_out[seqs.pop()] == result.labels[number]["held_out"]
    flat, eligible = result.tokens.reshape(-1), result.eligible.reshape(-1)
    assert owners.max() <= 1
    assert (flat[owners == 0] == BOS).all() if bos else owners.all()
    np.testing.assert_array_equal(eligible, (owners == 1) & ~np.isin(flat, list(SPECIAL)))
    assert (np.diff(result.segments[:, 0]) > 0).all()
    if bos:
        assert (result.tokens[:, 0] == BOS).all()
        assert not result.eligible[:, 0].any()

    whole = {document.label: ids_of(document.text) for document in documents}
    for label, ids in by_document(result).items():
        assert ids == whole[label][: len(ids)]
    for label in result.labels:
        assert label["n_tokens"] == len(by_document(result)[label["label"]])


@given(TEXTS)
@settings(deadline=None, max_examples=20)
def test_equal_input_gives_equal_output(texts):
    documents = filler(2) + [Document(text, str(i)) for i, text in enumerate(texts)] + filler(30)[2:]
    one, two = (packed(documents, n_ctx=8, n_tokens=96, bos=True, held_out=0.4) for _ in range(2))
    for name in ("tokens", "held_out", "eligible", "segments"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.labels == two.labels


def test_the_split_depends_on_the_document_alone():
    documents = [document._replace(group="") for document in filler(80)]
    n_tokens = int(0.8 * sum(len(ids_of(document.text)) for document in documents))
    forward = packed(documents, n_ctx=8, n_tokens=n_tokens, bos=True, held_out=0.2)
    backward = packed(documents[::-1], n_ctx=8, n_tokens=n_tokens, bos=True, held_out=0.2)
    sides = [{label["label"]: label["held_out"] for label in result.labels} for result in (forward, backward)]
    shared = sides[0].keys() & sides[1].keys()
    assert len(shared) > 20
    assert all(sides[0][label] == sides[1][label] for label in shared)
    assert sum(is_held_out(str(i), 0.05) for i in range(20_000)) == pytest.approx(1000, abs=100)


def test_a_group_stays_on_one_side():
    documents = [Document(f"the cat {i} sat", f"{i}", group=f"module {i % 4}") for i in range(200)]
    result = packed(documents, n_ctx=8, n_tokens=800, bos=False, held_out=0.5)
    sides = {int(label["label"]) % 4: set() for label in result.labels}
    for label in result.labels:
        sides[int(label["label"]) % 4].add(label["held_out"])
    assert all(len(side) == 1 for side in sides.values())


def test_bos_stands_between_documents_and_nothing_does_without():
    documents = [Document("the cat", f"{i}", group=TRAIN) for i in range(12)]
    documents += [Document("the dog", f"held {i}", group=HELD) for i in range(40)]
    cat, dog = ids_of("the cat"), ids_of("the dog")
    with_bos = packed(documents, n_ctx=3 * (len(cat) + 1), n_tokens=60, bos=True, held_out=0.5)
    assert with_bos.tokens[0].tolist() == [BOS, *cat] * 3
    without = packed(documents, n_ctx=3 * len(cat), n_tokens=60, bos=False, held_out=0.5)
    assert without.tokens[0].tolist() == cat * 3
    n_ctx = 3 * len(dog)
    assert without.tokens[without.held_out][0].tolist() == (dog * 3 * len(cat))[:n_ctx]


def test_text_that_spells_a_special_token_stays_text():
    documents = [Document("a <bos> and <eos> in the text " * 3, f"{i}", group=str(i)) for i in range(60)]
    result = packed(documents, n_ctx=16, n_tokens=800, bos=False, held_out=0.3)
    assert not np.isin(result.tokens, list(SPECIAL)).any()
    assert "<bos>" in TOKENIZER.decode(result.tokens[0])


def test_long_documents_are_tokenised_in_parts():
    text = "the cat sat\n" * 50_000
    cut = list(parts(text))
    assert len(cut) > 1
    assert "".join(cut) == text
    assert "".join(parts("x" * 25, 10)) == "x" * 25
    documents = [Document(text, "long", group=TRAIN), *filler(50)]
    n_tokens = len(ids_of(text))
    result = packed(documents, n_ctx=50, n_tokens=n_tokens + 200, bos=False, held_out=0.3)
    assert by_document(result)["long"] == ids_of(text)[: result.labels[0]["n_tokens"]]
    assert result.labels[0]["n_tokens"] > n_tokens - 50


def test_progress_counts_tokens_and_reading_stops_when_full():
    told, read = [], []

    def endless():
        for i in range(10**9):
            read.append(i)
            yield Document("the cat sat on the mat " * 100, f"{i}", group=f"{i}")

    packed(endless(), n_ctx=32, n_tokens=3200, bos=True, held_out=0.5, progress=told.append)
    assert told == [32] * 100
    assert len(read) < 1000


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        (filler(3), {"n_ctx": 4, "n_tokens": 4000}, r"corpus ends after \d+ tokens.* = 4,000.*corpus\.n_tokens=\d+"),
        ([], {"n_ctx": 4, "n_tokens": 4000}, "corpus ends after 0 tokens.*add more text"),
        (filler(50), {"n_ctx": 64, "n_tokens": 100}, r"fewer than two sequences.*increase corpus.n_tokens to 128"),
        (filler(50), {"n_ctx": 1, "n_tokens": 100}, "fewer than two sequences"),
        (filler(50), {"n_ctx": 4, "n_tokens": 40, "held_out": 1e-6}, "none of the 10 sequences.*is held out, .*; increase"),
        (filler(50), {"n_ctx": 4, "n_tokens": 40, "held_out": 1 - 1e-6}, "is for training.*lower corpus.held_out"),
    ],
)
def test_too_little_text_is_said_clearly(documents, options, message):
    with pytest.raises(SaescopeError, match=message):
        packed(documents, bos=True, **options)


def test_one_file_is_refused_with_a_split_that_works(tmp_path):
    """Both reasons in one sentence, and what it says to type is enough."""
    (tmp_path / "notes.txt").write_text("\n\n".join(f"the cat {i} sat on the mat" for i in range(200)))
    whole = (TextSource(source=f"text:{tmp_path}/notes.txt"),)
    options = {"n_ctx": 8, "bos": True, "held_out": 0.1}
    with pytest.raises(SaescopeError, match=r"Even then, none of the \d+ sequences \(1 document\) is held out") as refusal:
        packed(list(corpus.documents(whole)), n_tokens=100_000, finer=corpus.finer(whole), **options)
    source = re.search(r"'(corpus\.sources=\{.*\})'", str(refusal.value))[1]
    (config,) = resolve(
        {"name": "a", "site": "acts", "sae": {"variant": "topk", "d_sae": 8, "k": 1}}, [source]
    )
    found = packed(list(corpus.documents(config.corpus.sources)), n_tokens=1600, **options)
    assert found.held_out.any() and not found.held_out.all()
    # of paragraphs there is nothing finer to be made
    assert corpus.finer(config.corpus.sources) is None


def test_the_number_of_tokens_that_an_error_suggests_works():
    with pytest.raises(SaescopeError) as refusal:
        packed(filler(60), n_ctx=8, n_tokens=10**6, bos=True, held_out=0.3)
    suggested = int(str(refusal.value).split("corpus.n_tokens=")[1].split(",")[0])
    assert packed(filler(60), n_ctx=8, n_tokens=suggested, bos=True, held_out=0.3).tokens.size == suggested


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return list(corpus.documents([TextSource(source="python-stdlib")]))


@pytest.mark.parametrize("name", ["smollm2-135m", "native:tiny"])
def test_real_models_and_the_built_in_corpus(name, stdlib):
    model = load_model(name)
    result = pack(
        stdlib, model.tokenizer, n_ctx=128, n_tokens=100_000,
        prepend_bos=model.prepend_bos, bos_id=model.bos_id, special_ids=model.special_ids, held_out=0.1,
    )
    assert result.tokens.shape == (781, 128)
    assert 0.02 < result.held_out.mean() < 0.25
    assert (~result.eligible).sum() == np.isin(result.tokens, list(model.special_ids)).sum()
    assert result.eligible.mean() > 0.98
    first, n, number = result.segments[0]
    text = model.tokenizer.decode(result.tokens.reshape(-1)[first : first + n])
    assert any(d.label == result.labels[number]["label"] and d.text.startswith(text) for d in stdlib)


# --- conversations


def conversation(i: int, *turns: tuple[str, str], roles: tuple[str, ...] = ("assistant",)) -> Document:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Document(f"{i} {turns}", f"chat {i}", messages=messages, roles=roles)


def chats(n: int, **options) -> list[Document]:
    return [
        conversation(
            i, ("user", f" the user asked {i}"), ("assistant", "  the cat sat\n"), ("user", "a"), ("assistant", "s"),
            **options,
        )
        for i in range(n)
    ]


def eligible_text(result: Packed) -> str:
    train = ~result.held_out
    return CHAT.decode(result.tokens[train][result.eligible[train]])


def test_only_what_the_chosen_roles_said_is_eligible():
    result = packed(chats(60), n_ctx=32, n_tokens=1600, bos=False, held_out=0.3, tokenizer=CHAT)
    text = CHAT.decode(result.tokens[~result.held_out].reshape(-1))
    assert text.startswith("<bos>system\nBe kind.<eos>\n<bos>user\nthe user asked")
    assert len(eligible_text(result)) > 100
    assert ("the cat sats" * 60).startswith(eligible_text(result))
    both = packed(chats(60, roles=("user", "assistant")), n_ctx=32, n_tokens=1600, bos=False, held_out=0.3,
                  tokenizer=CHAT)
    assert "the user asked" in eligible_text(both)
    assert "Be kind" not in eligible_text(both)


def test_a_conversation_gets_one_bos_only():
    result = packed(chats(60), n_ctx=400, n_tokens=1600, bos=True, held_out=0.5, tokenizer=CHAT)
    assert not (np.isin(result.tokens[:, 1:], [BOS]) & np.isin(result.tokens[:, :-1], [BOS])).any()
    assert (result.tokens[:, 0] == BOS).all()


def test_special_tokens_that_a_message_spells_stay_text():
    documents = [
        conversation(i, ("user", "say <eos>"), ("assistant", "I say <eos> and <bos> here")) for i in range(40)
    ]
    result = packed(documents, n_ctx=256, n_tokens=1024, bos=False, held_out=0.5, tokenizer=CHAT)
    assert eligible_text(result).startswith("I say <eos> and <bos> here")
    assert not np.isin(result.tokens[result.eligible], list(SPECIAL)).any()
    first = CHAT.decode(result.tokens[0])
    assert first.count("<eos>") - first.count("say <eos>") == int((result.tokens[0] == EOS).sum())


def test_a_template_that_drops_a_message_leaves_nothing_of_it_eligible():
    forgetful = make_tokenizer("{% for m in messages[-1:] %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}")
    documents = [conversation(i, ("assistant", "early"), ("assistant", f"late {i}")) for i in range(40)]
    result = packed(documents, n_ctx=16, n_tokens=256, bos=False, held_out=0.5, tokenizer=forgetful)
    assert "early" not in CHAT.decode(result.tokens.reshape(-1))
    assert "late" in eligible_text(result)


def test_bad_conversations_are_explained():
    with pytest.raises(SaescopeError, match="no chat template"):
        packed(chats(3), n_ctx=4, n_tokens=100, bos=False, tokenizer=TOKENIZER)
    strict = make_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(SaescopeError, match=r"chat 0: .*roles must alternate.*user, assistant"):
        packed(chats(3), n_ctx=4, n_tokens=100, bos=False, tokenizer=strict)
    with pytest.raises(SaescopeError, match="no tokens to train on"):
        packed(chats(60, roles=("tool",)), n_ctx=32, n_tokens=800, bos=False, held_out=0.3, tokenizer=CHAT)
