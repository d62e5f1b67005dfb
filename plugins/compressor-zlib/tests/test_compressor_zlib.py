"""What is special about the zlib compressor: its level, and that it reads one whole stream and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zlib

import pytest

from taskq.errors import ConfigError, DecodeError
from taskq.spi import ComponentConfig
from taskq_compressor_zlib.options import ZlibOptions
from taskq_compressor_zlib.plugin import taskq_compressor

TEXT = b"to be or not to be, that is the question. " * 200


def make(**options):
    return taskq_compressor("zlib").factory(ComponentConfig(options=ZlibOptions(**options)))


def test_the_level_decides_the_size():
    sizes = [len(make(level=level).compress(TEXT)) for level in (0, 1, 9)]
    assert sizes[0] > len(TEXT) > sizes[1] > sizes[2]
    for level in range(10):
        written = make(level=level).compress(TEXT)
        assert make().decompress(written, max_size=len(TEXT)) == zlib.decompress(written) == TEXT


@pytest.mark.parametrize("level", [-1, 10])
def test_another_level_is_refused(level):
    with pytest.raises(ConfigError, match=f"level is {level}"):
        make(level=level)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes.*cut off"),
        (b"plain text", "incorrect header"),
        (zlib.compress(TEXT)[:-1], "cut off"),
        (zlib.compress(TEXT)[:20], "cut off"),
        (zlib.compress(TEXT) + b"x", "1 bytes follow"),
        (zlib.compress(TEXT) * 2, "follow the stream's end"),
        (zlib.compress(TEXT)[:-1] + b"\0", "incorrect data check"),
    ],
)
def test_what_is_not_one_whole_stream_is_refused(data, says):
    with pytest.raises(DecodeError, match=says):
        make().decompress(data, max_size=1_000_000)


def test_the_limit_is_exact():
    written = zlib.compress(TEXT)
    assert make().decompress(written, max_size=len(TEXT)) == TEXT
    with pytest.raises(DecodeError, match=f"limit of {len(TEXT) - 1} bytes"):
        make().decompress(written, max_size=len(TEXT) - 1)
    assert make().decompress(zlib.compress(b""), max_size=0) == b""
    with pytest.raises(DecodeError, match="limit of 0 bytes"):
        make().decompress(zlib.compress(b"x"), max_size=0)


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_compressor_zlib.plugin; sys.exit('taskq_compressor_zlib.compressor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
