"""Pictures and sounds within HTML, as data URIs that need no file."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from html import escape

_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""PNG's number for grey, RGB and RGBA, by the number of channels."""


def picture(pixels: bytes, width: int, height: int, channels: int, description: str) -> str:
    """An `img` element, magnified to be seen where the picture is small.

    Args:
        pixels: 8 bits a channel, (height, width, channels) in that order.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        description: for those who can't see it.

    >>> picture(bytes([0, 255]), 2, 1, 1, "black, white")[:48]
    '<img alt="black, white" src="data:image/png;base'
    """
    scale = max(1, 96 // max(width, height))
    shown = f"width: {width * scale}px; max-width: 192px; image-rendering: {'pixelated' if scale > 1 else 'auto'}"
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{_encoded(png(pixels, width, height, channels))}" style="{shown}">'


def png(pixels: bytes, width: int, height: int, channels: int) -> bytes:
    """A PNG file of such pixels; of one row after another, unfiltered."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = width * channels
    lines = b"".join(b"\0" + pixels[start : start + row] for start in range(0, row * height, row))
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def player(samples: bytes, rate: int, description: str) -> str:
    """An `audio` element.

    Args:
        samples: one channel of 16-bit numbers, little-endian.
        rate: samples a second.
        description: for those who use a screen reader.
    """
    return f'<audio controls aria-label="{escape(description)}" src="data:audio/wav;base64,{_encoded(wav(samples, rate))}"></audio>'


def wav(samples: bytes, rate: int) -> bytes:
    """A WAV file of such samples."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(rate)
            sound.writeframes(samples)
        return file.getvalue()


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
