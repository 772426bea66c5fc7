"""Larger pictures with faces placed, turned and scaled on them, whose five points are known."""

import io
import time

import numpy as np
from PIL import Image, ImageFilter

from facegen_keras.data.align import align_photographs
from facegen_keras.data.canvas import Canvas
from facegen_keras.data.find_faces import Detection
from facegen_keras.data.frame import FACE_POINTS, Similarity

UPRIGHT = 0x0112  # EXIF: how a camera lay


def drawn_points(face, image_size):
    """Eyes, tip of the nose and corners of the mouth of a drawn head with these attributes."""
    canvas = Canvas(face, image_size)
    x = 0.205 + 0.022 * face.eye_spacing
    points = np.array([-x + 0.015j, x + 0.015j, 0.15j, -0.2 + 0.3j, 0.2 + 0.3j])
    depth = np.array([0.7, 0.7, 1.15, 0.8, 0.8])
    nearer = 0.1 * face.yaw * depth  # as `Canvas.fill` turns what it paints
    turned = points + nearer + points.real * (0.07 * face.face_width - nearer / 0.75**2 * points.real)
    pixels = (turned * canvas.head_scale + canvas.head_origin) / canvas.oversampling
    return np.stack([pixels.real, pixels.imag], axis=1)


def background(size, seed=0):
    """Soft spots of many colours, in which nothing looks like a face."""
    width, height = size
    spots = np.random.default_rng(seed).integers(90, 190, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(8))


def photograph(faces, places, size, seed=0):
    """Faces with their points, or None, each placed by its middle (x, y), its turn in degrees and its scale."""
    picture, all_points = background(size, seed), []
    for (pixels, points), (x, y, degrees, scale) in zip(faces, places):
        face = Image.fromarray(pixels)
        middle = complex(face.width, face.height) / 2
        turn = scale * np.exp(1j * np.deg2rad(degrees))
        placed = Similarity(turn, complex(x, y) - turn * middle)
        back = placed.inverse()
        if scale < 1:  # `transform` alone would skip pixels
            smaller = face.resize((max(1, round(face.width * scale)), max(1, round(face.height * scale))),
                                  Image.Resampling.BICUBIC)
            back = Similarity(back.turn * smaller.width / face.width, back.shift * smaller.width / face.width)
            face = smaller
        rows = (back.turn.real, -back.turn.imag, back.shift.real, back.turn.imag, back.turn.real, back.shift.imag)
        how = dict(size=picture.size, method=Image.Transform.AFFINE, data=rows)
        moved = face.transform(**how, resample=Image.Resampling.BICUBIC)
        mask = Image.new("L", face.size, 255).transform(**how, resample=Image.Resampling.BILINEAR)
        picture.paste(moved, (0, 0), mask)
        all_points.append(None if points is None else placed(points))
    return picture, all_points


def saved(picture, format="PNG", **options):
    """The bytes of a file."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def on_its_side(picture):
    """A JPEG as a camera stores it that was turned by a right angle, with the EXIF data that say so."""
    note = Image.Exif()
    note[UPRIGHT] = 6
    return saved(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=note)


MARKED_BOX = np.array((40, 60, 138, 180))  # of a marked face, on CelebA's frame


def marked_face(seed, size=(98, 120)):
    """Stands for a face where no detector is started: magenta, with a fine pattern of its own."""
    pattern = np.random.default_rng(seed).integers(0, 70, (30, 24), np.uint8)
    green = np.asarray(Image.fromarray(pattern).resize(size, Image.Resampling.NEAREST))
    return np.stack([np.full_like(green, 255), green * 2, np.full_like(green, 255)], axis=-1)


class MarkedFinder:
    """Finds what is magenta, one face for each stretch of columns; no detector."""

    def __call__(self, pixels):
        red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
        marked = (red + blue) / 2 - green > 80
        edges = np.flatnonzero(np.diff(np.pad(marked.any(axis=0), 1).astype(int)))
        return [self.detection(marked, left, right) for left, right in edges.reshape(-1, 2) if right - left > 7]

    def detection(self, marked, left, right):
        rows = np.flatnonzero(marked[:, left:right].any(axis=1))
        box = np.array([left, rows[0], right, rows[-1] + 1], float)
        scale = (box[2:] - box[:2]) / (MARKED_BOX[2:] - MARKED_BOX[:2])
        return Detection(box, (FACE_POINTS - MARKED_BOX[:2]) * scale + box[:2], 0.99)


class SlowFinder(MarkedFinder):
    """For a process that is to be killed."""

    def __call__(self, pixels):
        time.sleep(0.02)
        return super().__call__(pixels)


class DoubtfulFinder(MarkedFinder):
    """Finds faces in photographs, and none at a second look."""

    def __call__(self, pixels):
        return [] if pixels.shape == (218, 178, 3) else super().__call__(pixels)


def marked_photographs(folder, count, faces=2):
    """Photographs with as many marked faces each, no two alike."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture = background((200 * faces + 40, 260), number)
        for place in range(faces):
            picture.paste(Image.fromarray(marked_face(100 * number + place)), (60 + 200 * place, 70))
        picture.save(folder / f"{number:02d}.png")
    return folder


def align_slowly(photographs, out):
    """What a process does that is to be killed."""
    align_photographs(photographs, out, processes=2, start=SlowFinder)
