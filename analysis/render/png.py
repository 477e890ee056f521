"""Small pictures of numbers as PNG, written without a drawing library."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from sae.files import write_bytes

CELL, GAP = 10, 10
DARK = (0, 64, 122)


def heat_maps(path: Path, maps: Sequence[Float[np.ndarray, "_ _"]]) -> None:
    """Matrices of numbers from 0 (white) to 1 (dark blue), side by side, `CELL` pixels a number."""
    height = max(m.shape[0] for m in maps) * CELL + 2 * GAP
    parts = [np.full((height, GAP, 3), 225, dtype=np.uint8)]
    for m in maps:
        shade = np.clip(m, 0, 1)[..., None]
        cells = (255 + shade * (np.array(DARK) - 255)).round().astype(np.uint8)
        block = np.full((height, m.shape[1] * CELL + GAP, 3), 225, dtype=np.uint8)
        block[GAP : GAP + m.shape[0] * CELL, : m.shape[1] * CELL] = cells.repeat(CELL, 0).repeat(CELL, 1)
        parts.append(block)
    write_bytes(path, png(np.concatenate(parts, axis=1)))


def png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """An RGB picture as a PNG file (ISO 15948): unfiltered lines, one IDAT chunk."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((height, 1), dtype=np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
            + chunk(b"IEND", b""))
