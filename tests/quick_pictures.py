"""Curves and films drawn in no time, for runs in which nobody looks at them."""

from matplotlib.figure import Figure
from PIL import Image

DOT = Image.new("RGB", (1, 1))


def save_a_dot(figure, file, format="png", **options):
    DOT.save(file, format)


def quantize(image, *arguments, **options):
    return image.convert("P")  # to the same colours for all pictures


def draw_quickly(setattr=setattr):
    """Replaces what takes long in Matplotlib and Pillow; the files are there, and are pictures."""
    setattr(Figure, "savefig", save_a_dot)
    setattr(Image.Image, "quantize", quantize)
