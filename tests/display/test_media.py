"""Pictures and sounds in HTML: what other programs read of them."""

from __future__ import annotations

import base64
import io
import re
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.display.media import picture, player, png, wav


def content(html):
    return base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pillow_reads_the_pixels_that_were_written(channels, mode):
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    image = Image.open(io.BytesIO(png(pixels.tobytes(), 7, 5, channels)))
    assert (image.mode, image.size) == (mode, (7, 5))
    assert np.array_equal(np.asarray(image).reshape(5, 7, channels), pixels)


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50), st.sampled_from([8000, 16000, 44100]))
def test_the_samples_of_a_sound_are_read_back(samples, rate):
    with wave.open(io.BytesIO(wav(np.array(samples, dtype="<i2").tobytes(), rate))) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (rate, 1)
        assert np.frombuffer(sound.readframes(len(samples)), "<i2").tolist() == samples


def test_descriptions_are_for_those_who_can_not_see_and_are_escaped():
    html = picture(bytes(4), 2, 2, 1, 'a "cat" <b>')
    assert 'alt="a &quot;cat&quot; &lt;b&gt;"' in html
    assert content(html).startswith(b"\x89PNG")
    assert 'aria-label="&lt;x&gt;"' in player(bytes(4), 8000, "<x>")
