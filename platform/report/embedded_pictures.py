"""Pictures inside a page, as data URIs."""

import base64
import io
from pathlib import Path


def embedded_jpeg(path: Path, side: int) -> str:
    """A picture as a small JPEG in a data URI, so that a page has neither the full size nor the metadata of the file.

    Parameters
    ----------
    path
        Picture.
    side
        Most pixels of its longer side.
    """
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=78)
    return jpeg_uri(buffer.getvalue())


def jpeg_uri(data: bytes) -> str:
    """The bytes of a JPEG file as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
