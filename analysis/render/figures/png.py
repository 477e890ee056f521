"""Write arrays as small PNG images, without an imaging library."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from sae.io.files import write_bytes

CELL, GAP = 10, 10
DARK, BELOW = (0, 64, 122), (178, 66, 0)
GROUND = 225


def heat_maps(path: Path, maps: Sequence[Float[np.ndarray, "_ _"]]) -> None:
    """Heat maps of values from 0 (white) to 1 (dark blue), side by side, `CELL` pixels per value."""
    write_bytes(path, png(_beside([_shaded(m).repeat(CELL, 0).repeat(CELL, 1) for m in maps])))


def galleries(
    path: Path, panels: Sequence[Float[np.ndarray, "_ height width"]], *, columns: int = 6, pixel: int = 4
) -> None:
    """Panels of small images, side by side: blue is positive, orange negative, white zero.

    Args:
        path: the output file.
        panels: images of each panel, each normalised by its largest |value|.
        columns: images per row of a panel.
        pixel: size of an image's pixel in the PNG.
    """
    write_bytes(path, png(_beside([_gallery(panel, columns, pixel) for panel in panels])))


def _gallery(pictures: Float[np.ndarray, "n height width"], columns: int, pixel: int) -> UInt8[np.ndarray, "_ _ 3"]:
    n, height, width = pictures.shape
    high, wide = height * pixel + 2, width * pixel + 2
    out = np.full((-(-n // columns) * high, columns * wide, 3), GROUND, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * high, i % columns * wide
        shaded = _shaded(picture / max(float(np.abs(picture).max()), 1e-12), BELOW)
        out[top : top + high - 2, left : left + wide - 2] = shaded.repeat(pixel, 0).repeat(pixel, 1)
    return out


def _shaded(
    numbers: Float[np.ndarray, "height width"], below: tuple[int, int, int] = (255, 255, 255)
) -> UInt8[np.ndarray, "height width 3"]:
    """Colour map: white at 0, dark blue at 1, `below` at −1."""
    shade = np.clip(numbers, -1, 1)[..., None]
    ends = np.where(shade > 0, np.array(DARK), np.array(below))
    return (255 + np.abs(shade) * (ends - 255)).round().astype(np.uint8)


def _beside(parts: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Images side by side on a grey background, aligned at the top."""
    height = max(part.shape[0] for part in parts) + 2 * GAP
    blocks = [np.full((height, GAP, 3), GROUND, dtype=np.uint8)]
    for part in parts:
        block = np.full((height, part.shape[1] + GAP, 3), GROUND, dtype=np.uint8)
        block[GAP : GAP + part.shape[0], : part.shape[1]] = part
        blocks.append(block)
    return np.concatenate(blocks, axis=1)


def png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encode an RGB image as PNG (ISO 15948): unfiltered lines, one IDAT chunk."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((height, 1), dtype=np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
            + chunk(b"IEND", b""))
