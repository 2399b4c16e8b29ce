"""Pictures in place of those of `pictures.draw_panels`: drawing takes most of the time of a small run."""

import hashlib
import struct
import zlib

import numpy as np


def draw_panels(volume, outlines, *how):
    """A PNG of one row of pixels, the digest of what would be drawn: of other content, another picture."""
    digest = hashlib.sha256(repr((volume.shape, [colour for _, colour in outlines], how)).encode())
    for array in (volume, *(mask for mask, _ in outlines)):
        digest.update(np.ascontiguousarray(array))
    header = struct.pack('>IIBBBBB', 8, 1, 8, 2, 0, 0, 0)  # 8 x 1 pixels of 8 bits, RGB
    row = b'\0' + digest.digest()[:24]
    chunks = ((b'IHDR', header), (b'IDAT', zlib.compress(row)), (b'IEND', b''))
    parts = [struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
             for kind, data in chunks]  # fmt: skip
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)
