"""The style sheet for all HTML of this package: include it once per page, in a `<style>`.

It inherits text colour and font and uses translucent backgrounds, so it works with any theme.
"""

from analysis.render.palette import COLOURS, fade
from analysis.render.tokens import LEVELS, MAX_ALPHA

POSITIVE, NEGATIVE = COLOURS[0], COLOURS[1]


def ground(colour: str, level: int) -> str:
    """Background colour of a level; the lowest is still visible."""
    return fade(colour, round(0.1 + (MAX_ALPHA - 0.1) * level / LEVELS, 3))


def _levels() -> str:
    return "".join(
        f".sx-{kind}{i}{{background:{ground(colour, i)};border-bottom:2px {line} {colour};padding-bottom:2px}}"
        for kind, colour, line in (("p", POSITIVE, "solid"), ("n", NEGATIVE, "dashed"))
        for i in range(1, LEVELS + 1)
    )


_BASE = """
.sx{--sx-rule:color-mix(in srgb,currentColor 18%,transparent);--sx-soft:color-mix(in srgb,currentColor 6%,transparent);
font-size:.875rem;line-height:1.5;container-type:inline-size}
.sx *{box-sizing:border-box}
.sx h2{font-size:1.25rem;font-weight:600;margin:0 0 .2rem;padding:0}
.sx :is(h3,h2.sx-sub){font-size:.95rem;font-weight:600;margin:1rem 0 .3rem;padding:0}
.sx a{color:inherit;text-decoration:underline;text-underline-offset:2px}
.sx-quiet{opacity:.75}
.sx-quiet .sx-quiet,.sx-list thead .sx-quiet{opacity:1}
.sx-heat{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.8125rem;
line-height:1.75;white-space:break-spaces;overflow-wrap:anywhere;direction:ltr;unicode-bidi:isolate}
.sx-heat bdi{unicode-bidi:isolate;border-radius:2px}
.sx-peak{box-shadow:inset 0 0 0 1.5px currentColor;padding-left:3px;padding-right:3px}
.sx-heat [data-v]{position:relative}
.sx-heat [tabindex]:focus-visible{outline:3px solid currentColor}
.sx-heat [data-v]:hover::after,.sx-heat [data-v]:focus-visible::after{content:attr(data-v);position:absolute;left:0;
top:100%;z-index:9;padding:0 .35rem;border-radius:3px;background:#1f2328;color:#fff;font-size:.75rem;white-space:nowrap;
pointer-events:none}
.sx-numbers [data-v]::before{content:attr(data-v);font-size:.6875rem;vertical-align:.15em;padding:0 .2rem 0 0;opacity:.85}
.sx-odd{font-size:.85em;border:1px solid var(--sx-rule);border-radius:3px;padding:0 .1em}
.sx-br::before{content:"⏎";opacity:.55;user-select:none}
.sx-flat .sx-br{white-space:normal}
.sx-far,.sx-in{display:none}
.sx-wide .sx-far,.sx-wide .sx-in{display:inline}
.sx-ex{display:grid;grid-template-columns:7rem minmax(0,1fr);gap:.6rem;padding:.3rem 0;
border-bottom:1px solid var(--sx-rule)}
.sx-val,.sx-num{font-variant-numeric:tabular-nums;text-align:right;white-space:nowrap}
.sx-val{font-weight:600}
.sx-peaked{display:flex;gap:.6rem;justify-content:space-between}
.sx-peaked small{overflow:hidden;text-overflow:ellipsis;font-weight:400;font-size:.8125rem;
font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.sx-pictures{display:flex;gap:.4rem}
.sx-picture{display:inline-block;position:relative;width:5.5rem;background:var(--sx-image) 0 0/100% 100%;
image-rendering:pixelated}
.sx-heat .sx-picture [data-v]{position:absolute;border-radius:0;padding:0}
.sx-outputs{display:flex;flex-wrap:wrap;gap:0 2rem}
.sx-outputs .sx-picture{width:11rem}
.sx .sx-ex.sx-tile{display:inline-grid;grid-template-columns:auto;gap:.2rem;margin:0 1rem .6rem 0;border:none;
content-visibility:visible}
.sx-legend{display:flex;flex-wrap:wrap;gap:.4rem;font-size:.75rem;align-items:center;font-variant-numeric:tabular-nums}
.sx-legend bdi{padding:0 .35rem}
.sx-facts{display:flex;flex-wrap:wrap;gap:.2rem 1.6rem;margin:.4rem 0;padding:0}
.sx-facts div{display:flex;flex-direction:column}
.sx-facts dt{font-size:.75rem;opacity:.75}
.sx-facts dd{margin:0;font-variant-numeric:tabular-nums}
.sx-card{display:grid;grid-template-columns:minmax(0,19rem) minmax(0,1fr);gap:0 2rem}
.sx-card>header{grid-column:1/-1}
@container (max-width:34rem){.sx-ex{grid-template-columns:minmax(0,1fr)}.sx-peaked{justify-content:flex-start}}
@container (max-width:46rem){.sx-card{grid-template-columns:minmax(0,1fr)}}
.sx p{font-size:inherit;margin:0 0 .5rem}
.sx table{font-size:inherit;color:inherit;line-height:inherit}
.sx-list{border-collapse:collapse;width:100%;margin:0}
.sx-list th,.sx-list td{padding:.1rem .6rem .1rem 0;text-align:left;border:none;font-weight:400;overflow-wrap:anywhere;
vertical-align:top}
.sx-list th[scope=row]{min-width:5rem}
.sx-list thead th{font-size:.75rem;opacity:.75}
.sx-list tr{border-bottom:1px solid var(--sx-rule)}
.sx-list .sx-num{text-align:right;padding-right:0}
.sx-bar{display:block;margin-top:.5em;height:.35rem;border-radius:2px;min-width:1px}
.sx-hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.sx-label{font-size:1.05rem;font-weight:600;overflow-wrap:anywhere}
.sx-tag{display:inline-block;border:1px solid var(--sx-rule);border-radius:999px;padding:0 .55rem;margin:0 .25rem .2rem 0;
font-size:.75rem;overflow-wrap:anywhere}
.sx-chip{white-space:nowrap;margin-right:.4rem}
.sx-chip bdi{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.92em;padding:0 .25rem;
border-radius:3px;background:var(--sx-soft,rgba(128,128,128,.15))}
.sx-chip small{font-size:.85em}
.sx-tag.sx-both{border-width:2px;border-color:currentColor;font-weight:600}
.sx svg{display:block;width:100%;height:auto;overflow:visible}
.sx svg text{fill:currentColor;font-size:11px}
.sx svg.sx-histogram{max-width:26rem}
.sx svg .sx-mark text{paint-order:stroke;stroke:var(--sx-ground,Canvas);stroke-width:3px}
.sx-scroll{overflow-x:auto}
.sx-grid{border-collapse:separate;border-spacing:0;font-size:.75rem}
.sx-grid th,.sx-grid td{border:none;border-bottom:1px solid var(--sx-rule);padding:.15rem .3rem;white-space:pre;
text-align:right;font-variant-numeric:tabular-nums}
.sx-grid thead th{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-weight:400;
vertical-align:bottom;max-width:9rem;overflow:hidden;text-overflow:ellipsis}
.sx-grid thead th:first-child{font-family:inherit;text-align:left}
.sx-grid tr[aria-current] th{box-shadow:inset 3px 0 0 currentColor;padding-left:.5rem}
.sx-grid tbody th{position:sticky;left:0;text-align:left;font-weight:400;white-space:nowrap;max-width:18rem;
overflow:hidden;text-overflow:ellipsis;background:var(--sx-ground,Canvas);z-index:1}
.sx-two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:0 2rem}
.sx-whole{white-space:nowrap}
.sx-right::before{content:"✓ "}.sx-wrong::before{content:"✗ "}
"""


def _bars() -> str:
    stripes = f"repeating-linear-gradient(90deg,{NEGATIVE} 0 4px,transparent 4px 6px)"
    return f".sx-bar-p{{background:{POSITIVE}}}.sx-bar-n{{background:{stripes}}}"


def _second() -> str:
    """Style of a second feature on top of the first's background: a line under the token."""
    return "".join(
        f".sx-b{i}{{box-shadow:inset 0 -{2 + i // 4}px 0 {NEGATIVE}}}" for i in range(1, LEVELS + 1)
    )


def _graph() -> str:
    """Styles of a circuit's graph (`analysis.render.circuit`)."""
    return f"""
.sx-graph{{display:flex;margin:.5rem 0}}
.sx-graph>svg{{flex:none}}
.sx-graph svg,.sx-graph-legend svg{{width:auto;max-width:none}}
.sx-graph-legend span{{display:inline-flex;gap:.3rem;align-items:center;margin-right:.8rem}}
.sx-rule{{stroke:var(--sx-rule);stroke-width:1}}
.sx-edge{{fill:none;stroke-opacity:.5;stroke:currentColor}}
.sx-edge.sx-pos{{stroke:{POSITIVE}}}.sx-edge.sx-neg{{stroke:{NEGATIVE};stroke-dasharray:5 3}}
.sx-node{{fill:currentColor;fill-opacity:.5;stroke:currentColor;stroke-width:1.5}}
.sx-node.sx-pos{{fill:{POSITIVE};fill-opacity:1;stroke:{POSITIVE}}}
.sx-node.sx-neg{{fill:var(--sx-ground,Canvas);fill-opacity:1;stroke:{NEGATIVE};stroke-width:3}}
.sx .sx-node text{{font-size:9px;stroke:none;fill:currentColor;fill-opacity:.8}}
.sx-node:hover,.sx-node:focus-visible{{outline:none;stroke:currentColor}}
.sx .sx-ring{{fill:none;stroke:currentColor;stroke-width:1.5}}
.sx-hit{{fill:transparent;stroke:none}}
.sx-out{{fill:currentColor}}
.sx-tip{{display:none;pointer-events:none}}
.sx-tip rect{{fill:#1f2328;stroke:#fff;stroke-width:.5}}.sx .sx-tip text{{fill:#fff}}
"""


CSS = _BASE + _bars() + _levels() + _second() + _graph()
"""Classes start with `sx-`. The wrapper has class `sx`, plus `sx-numbers` to show values or `sx-flat` to join lines."""
