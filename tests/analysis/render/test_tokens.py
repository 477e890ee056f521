import pytest

from analysis.render import css, text, tokens
from tests.analysis.markup import Page, check_visible
from tests.analysis.samples import HOSTILE, example


@pytest.mark.parametrize("piece", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_tokens_are_text(piece: str) -> None:
    html = tokens.heat([piece, piece, "b"], [2.0, 0.0, -1.0], scale=2.0, peak=0, limit=None)
    page = Page(html)
    assert [e.tag for e in page.elements if e.tag not in ("span",)] == ["div", "bdi", "bdi", "bdi"]
    check_visible(page.text)
    for element in page.elements:
        check_visible("".join(element.attributes.values()))


@pytest.mark.parametrize("piece", HOSTILE, ids=range(len(HOSTILE)))
def test_plain_text_can_be_printed_in_a_terminal(piece: str) -> None:
    line = text.plain(piece)
    check_visible(line)
    assert line and "\n" not in line and len(line) <= 8 * text.LIMIT
    line.encode("utf-8")


def test_ordinary_text_stays_as_it_is() -> None:
    for ordinary in ("def", " import", "naïve", "日本", "🙂", "שלום", "a\u0301"):
        assert text.plain(ordinary) == ordinary
        assert Page(text.shown(ordinary)).text == ordinary


def test_what_cannot_be_seen_is_shown() -> None:
    cases = {
        "a\nb": "a⏎b", "\t": "⇥", "\x00": "␀", "\u202e": "⟨202E⟩", "\u200b": "⟨200B⟩", "\udc80": "⟨DC80⟩",
        "\u0301": "◌\u0301", "": "⟨empty⟩", "\u00a0": "⍽", "\u3000": "⟨3000⟩",
    }
    assert {raw: text.plain(raw) for raw in cases} == cases
    assert text.plain(" the", spaces=True) == "␣the"


def test_towers_of_marks_are_taken_down() -> None:
    assert text.plain("e" + "\u0301" * 5) == "e\u0301\u0301\u0301⟨0301⟩⟨0301⟩"


def test_a_long_token_is_cut_and_says_so() -> None:
    assert text.plain("x" * 70, limit=64) == "x" * 64 + "… 6 characters more"
    assert len(tokens.heat(["x" * 100_000], [1.0], scale=1.0)) < 400


def test_numbers_read_well() -> None:
    cases = {0.0: "0", 3.14159: "3.14", -2.5: "−2.50", 1234.6: "1,235", 0.000123: "0.000123", 100.0: "100"}
    assert {value: text.number(value) for value in cases} == cases
    assert text.number(float("nan")) == text.number(None) == "–"
    assert [text.short(value) for value in (20.0, -0.5, 20_000.0)] == ["20", "−0.5", "20,000"]
    assert [text.short(value) for value in (1e-4, 1e-5, -2e-5, 1.1e-12)] == ["0.0001", "10⁻⁵", "−2·10⁻⁵", "1.1·10⁻¹²"]


def test_an_active_token_says_its_name_and_value() -> None:
    page = Page(tokens.heat([" a", "b", "\n"], [0.0, 3.25, -1.5], scale=3.25, peak=1))
    inactive, peak, negative = page.having("bdi")
    assert inactive.attributes == {}
    assert peak.attributes == {
        "class": "sx-p10 sx-peak", "role": "listitem", "tabindex": "0", "data-v": "3.25", "aria-label": "b, 3.25",
    }
    assert (negative.attributes["class"], negative.attributes["aria-label"]) == ("sx-n5", "⏎, −1.50")
    assert "tabindex" not in negative.attributes
    all_reached = Page(tokens.heat(["a", "b"], [1.0, 2.0], scale=2.0, focus_all=True))
    assert [e.attributes.get("tabindex") for e in all_reached.having("bdi")] == ["0", "0"]
    assert page.elements[0].attributes["role"] == "list"


def test_the_rest_of_a_character_shows_only_where_it_is_active() -> None:
    page = Page(tokens.heat(["🙂", "", "", "a"], [0.0, 0.0, 1.0, 0.0], scale=1.0))
    assert [e.text for e in page.having("bdi")] == ["🙂", "⋯", "a"]


def test_a_newline_is_copied_as_one() -> None:
    page = Page(tokens.heat(["a\n", "\n", "b"], [0.0, 1.0, 0.0], scale=1.0))
    assert page.text == "a\n\nb" and [e.text for e in page.having("span", class_="sx-br")] == ["\n", "\n"]
    assert "⏎" in text.shown("a\nb")  # in one line elsewhere


def cut(pieces: list[str], active: int = -1) -> str:
    """What is seen of a window without the indentation that its lines share."""
    values = [float(i == active) for i in range(len(pieces))]
    stretches = tokens.indentation(pieces, values, range(len(pieces)))
    hidden = {(i, j) for i, found in stretches.items() for start, stop in found for j in range(start, stop)}
    return "".join(c for i, piece in enumerate(pieces) for j, c in enumerate(piece) if (i, j) not in hidden)


@pytest.mark.parametrize(("pieces", "seen"), [
    (["if x:\n", "        a\n", "            b\n"], "if x:\na\n    b\n"),
    (["x:", "\n    ", "    a", "\n        b"], "x:\na\nb"),  # within tokens that begin with the line's end
    (["    x\n", "  a\n\n   \n", "  b"], "    x\na\n\n   \nb"),  # the first line began before; blank ones do not count
    (["a\n", "\tb\n\t\tc"], "a\nb\n\tc"), (["a b  c"], "a b  c"), (["a\n", "b\n", "  c"], "a\nb\n  c"), ([], ""),
])
def test_shared_indentation_is_cut(pieces: list[str], seen: str) -> None:
    import textwrap

    assert cut(pieces) == seen
    whole = "".join(pieces)
    if "\n" in whole and "\n   \n" not in whole:
        first, _, rest = whole.partition("\n")
        assert cut(pieces) == f"{first}\n{textwrap.dedent(rest)}"


def test_active_indentation_is_never_cut() -> None:
    assert cut(["x\n", "    ", "a\n", "    ", "b"], active=1) == "x\n    a\nb"


def test_what_is_far_is_there_and_hidden() -> None:
    pieces, values = ["f", "a\n", "  b", "  c", "g"], [1.0, 0.0, 2.0, 0.0, 0.0]
    page = Page(tokens.heat(pieces, values, scale=2.0, peak=2, near=range(1, 4)))
    assert page.text == "".join(pieces)
    assert [e.text for e in page.having("span", class_="sx-far")] == ["f", "g"]
    one = tokens.example(example(["a"] * 9, [0.0] * 4 + [1.0] + [0.0] * 4), 1.0, reach=(2, 1))
    assert [e.text for e in Page(one).having("span", class_="sx-far")] == ["aa", "aaa"]


def test_depth_follows_the_value() -> None:
    values = [0.0, 1e-9, 0.1, 0.5, 0.95, 1.0, 7.0, -0.5, float("nan"), float("inf")]
    assert [tokens.level(value, 1.0) for value in values] == [0, 1, 1, 5, 10, 10, 10, 5, 0, 0]
    assert tokens.level(1.0, 0.0) == 1


def test_a_window_of_32_tokens_is_small() -> None:
    values = [0.0] * 32
    values[16] = 3.0
    html = tokens.example(example([" token"] * 32, values), 3.0)
    assert len(html) < 1000


def test_an_example_says_where_it_is_from() -> None:
    page = Page(tokens.example(example(["a", "b"], [0.0, 2.0], seq=1234, start=10), 4.0))
    assert page.elements[0].attributes["aria-label"] == "context 1234, token 11"
    assert page.elements[0].attributes["data-value"] == "2"
    assert page.having("span")[0].text == "b2.00"
    assert [e.text for e in page.having("bdi", class_="sx-p5 sx-peak")] == ["b"]


def _luminance(rgb: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize(("ink", "paper"), [
    ("#31333F", "#FFFFFF"), ("#FAFAFA", "#0E1117"), ("#000000", "#FFFFFF"), ("#FFFFFF", "#121212"),
])
@pytest.mark.parametrize("colour", [css.POSITIVE, css.NEGATIVE])
def test_text_on_every_ground_has_contrast(colour: str, ink: str, paper: str) -> None:
    for level in range(1, tokens.LEVELS + 1):
        alpha = float(css.ground(colour, level).rpartition(",")[2][:-1])
        mixed = tuple(alpha * c + (1 - alpha) * p for c, p in zip(_rgb(colour), _rgb(paper), strict=True))
        lights = sorted((_luminance(mixed), _luminance(_rgb(ink))))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, (level, lights)


def test_sign_differs_by_more_than_hue() -> None:
    rules = {line.partition("{")[0]: line for line in css.CSS.split("}")}
    for level in range(1, tokens.LEVELS + 1):
        assert "solid" in rules[f".sx-p{level}"] and "dashed" in rules[f".sx-n{level}"]


def test_the_style_sheet_asks_for_nothing_from_elsewhere() -> None:
    assert "url(" not in css.CSS and "@import" not in css.CSS and "</" not in css.CSS
    assert css.CSS.count("{") == css.CSS.count("}")


def test_inactive_tokens_between_active_ones_are_one_piece_of_text() -> None:
    page = Page(tokens.heat(["a", "b", "c", "", "d", "e"], [0.0, 0.0, 1.0, 0.0, 0.0, -1.0], scale=1.0))
    assert [e.text for e in page.having("bdi")] == ["ab", "c", "d", "e"]
    assert page.text == "abcde"
