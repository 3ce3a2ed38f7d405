"""Folders of pictures, one folder for each class, as tensors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

# formats by Pillow's name, whatever a file's name says: a decoder less is a fault less
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
EXTENSIONS = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

MOST_PIXELS = 89_478_485  # more may be a bomb, from here on Pillow itself warns

# 16 bits a pixel: Pillow would cut off at 255 what it turns into 8 bits
_WIDE = ("I;16", "I;16B", "I;16L", "I;16N")


def read_pictures(
    folder: Path, classes: Sequence[str], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor] | None:
    """Return all pictures and the numbers of their classes, by class and name, or None for none.

    Args:
        folder: has a folder for each class that occurs; deeper folders count too.
        classes: their names, in the order of their numbers.
        shape: channels (1 or 3), height and width to which pictures are brought.

    Returns:
        pixels in [0, 1] of shape (N, channels, height, width), and labels of shape (N,).

    Raises:
        ValueError: naming the file that is no picture, or the folder that is no class.
        ImportError: if Pillow is not installed.
    """
    if not folder.is_dir():
        return None
    if shape[0] not in (1, 3):
        raise ValueError(f"data.shape: expected 1 or 3 channels for pictures, got {shape[0]}")
    found = _found(folder, classes)
    if not found:
        return None
    try:
        pixels = torch.empty(len(found), *shape)
    except RuntimeError as error:
        raise ValueError(
            f"{folder}: {len(found)} pictures of shape {shape} do not fit into memory"
        ) from error
    for place, (file, _) in zip(pixels, found, strict=True):
        place.copy_(_picture(file, shape))
    return pixels, torch.tensor([label for _, label in found])


def _found(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return all pictures' files and the numbers of their classes."""
    unknown = sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name not in classes)
    if unknown:
        raise ValueError(
            f"{folder}: expected folders named after data.classes ({', '.join(classes)}), "
            f"got {', '.join(unknown[:5])}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return [
        (Path(parent) / name, numbers[of_class])
        for of_class in sorted(numbers)
        for parent, _, names in sorted(os.walk(folder / of_class, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(EXTENSIONS)
    ]


def _picture(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return a picture of that shape, with pixels in [0, 1]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "data-folder needs Pillow to read pictures: pip install pillow"
        ) from error

    try:
        with Image.open(file, formats=FORMATS) as image:
            if (number := image.width * image.height) > MOST_PIXELS:
                raise ValueError(
                    f"it has {number:,} pixels, more than {MOST_PIXELS:,}; scale it down"
                )
            return _pixels(image, shape)
    except Exception as error:  # of whatever class a damaged file makes a decoder raise
        raise ValueError(f"{file} cannot be read as a picture: {error}") from error


def _pixels(image: "Image.Image", shape: tuple[int, int, int]) -> Tensor:
    from PIL import Image

    channels, height, width = shape
    if image.mode in _WIDE or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow resizes these in float32 alone
        image = Image.fromarray(np.asarray(image, dtype=np.float32))
        largest = 65535
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"the range of its pixels (Pillow's mode {image.mode}) is unknown; save it with 8 or "
            "16 bits"
        )
    else:
        image, largest = image.convert("L" if channels == 1 else "RGB"), 255
    resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized.reshape(height, width, -1)).permute(2, 0, 1)
    return (pixels.float() / largest).expand(shape)
