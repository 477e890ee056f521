from analysis.render.tables import plain

HOSTILE = "<script>alert(1)</script>"


def test_every_text_is_escaped() -> None:
    for html in (plain.table([HOSTILE], [[HOSTILE]], caption=HOSTILE), plain.legend([HOSTILE], [0])):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_a_table_has_its_cells_in_order() -> None:
    html = plain.table(["key", "a"], [["sae.k", "4"], ["sae.d_sae", "64"]], caption="Configs")
    places = [html.index(text) for text in ("Configs", ">key<", ">a<", ">sae.k<", ">4<", ">sae.d_sae<", ">64<")]
    assert places == sorted(places)
