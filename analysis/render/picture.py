"""Image contexts: the original next to a copy with the feature's active positions marked."""

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from analysis.render.figures.png import png
from analysis.render.text import attribute

if TYPE_CHECKING:
    from analysis.index.types import Picture


def marked(picture: "Picture", marks: Sequence[tuple[str, str]], *, peak: int | None = None) -> str:
    """An image next to a copy with shaded positions.

    Args:
        picture: the image.
        marks: CSS classes and tooltip of each position, "" and "" for none.
        peak: the position to outline.
    """
    cells = "".join(
        f'<bdi class="{classes}{" sx-peak" if i == peak else ""}" role="listitem" data-v="{said}" '
        f'aria-label="position {i}, {said}"{" tabindex=0" if i == peak else ""} style="{_box(box)}"></bdi>'
        for i, ((classes, said), box) in enumerate(zip(marks, picture.boxes.tolist(), strict=True)) if classes or i == peak
    )
    name, size = attribute(picture.name), f"aspect-ratio:{picture.pixels.shape[1]}/{picture.pixels.shape[0]}"
    role = ' role="list"' if cells else ""
    return (
        f'<div class="sx-heat sx-pictures" style="{background(picture.pixels)}">'
        f'<span class="sx-picture" role="img" aria-label="{name}" style="{size}"></span>'
        f'<span class="sx-picture"{role} style="{size}">{cells}</span></div>'
    )


def alone(pixels: UInt8[np.ndarray, "height width channels"], said: str) -> str:
    """A single image; `said` is its alt text."""
    size = f"aspect-ratio:{pixels.shape[1]}/{pixels.shape[0]}"
    return (f'<span class="sx-picture" role="img" aria-label="{attribute(said)}" '
            f'style="{size};{background(pixels)}"></span>')


def background(pixels: UInt8[np.ndarray, "height width channels"]) -> str:
    """CSS that passes an image to elements of class `sx-picture`."""
    return f"--sx-image:url(data:image/png;base64,{_encoded(pixels.tobytes(), pixels.shape)})"


@lru_cache(maxsize=4096)
def _encoded(content: bytes, shape: tuple[int, int, int]) -> str:
    pixels = np.frombuffer(content, np.uint8).reshape(shape)
    return base64.b64encode(png(np.broadcast_to(pixels, (*shape[:2], 3)))).decode()


def _box(box: Sequence[float]) -> str:
    top, left, height, width = (f"{100 * share:.4g}%" for share in box)
    return f"top:{top};left:{left};height:{height};width:{width}"
