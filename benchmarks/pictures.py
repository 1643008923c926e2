"""Pictures small enough for the repository."""

import io

from PIL import Image


def small_png(picture: bytes, colours: int = 32) -> bytes:
    """The picture with few colours: the most frequent as they are, so that lines keep theirs.

    Args:
        picture: PNG.
        colours: At most 256; three eighths of them stand for all that are not frequent.

    Returns:
        PNG, never longer than what was given.
    """
    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    counted = sorted(image.getcolors(image.width * image.height) or [], reverse=True)
    palette = [v for _, colour in counted[: colours * 5 // 8] for v in colour]
    others = colours - len(palette) // 3
    palette += (image.quantize(others).getpalette() or [])[: 3 * others]
    holder = Image.new("P", (1, 1))
    holder.putpalette(palette + palette[:3] * (256 - len(palette) // 3))
    small = io.BytesIO()
    reduced = image.quantize(palette=holder, dither=Image.Dither.NONE)
    reduced.save(small, "png", optimize=True)
    return min(small.getvalue(), picture, key=len)
