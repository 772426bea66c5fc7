"""A folder as the internet fills it: good pictures, and every kind of file that cannot be used as one."""

import io
import os
import zipfile
import zlib

import numpy as np
from PIL import Image

from facegen_keras.data.sources import MAX_BYTES

random = np.random.default_rng(0)


def noise(width=64, height=64):
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def save(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def part(data, fraction):
    return data[:round(len(data) * fraction)]


def flip_checksum(data, chunk):
    "A PNG whose first chunk of this kind has a wrong CRC."
    place = data.index(chunk)
    end = place + 4 + int.from_bytes(data[place - 4:place], "big")
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1:]


def claim_size(width, height):
    "A small PNG that claims another size."
    data = save(noise())
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "hello")
    return file.getvalue()


def link_to(target):
    return lambda path: path.symlink_to(target)


def link_to_pipe(path):
    os.mkfifo(path.parent / ".pipe")
    path.symlink_to(".pipe")


def too_long(path):
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)


GOOD = [save(noise()) for _ in range(4)]
JPEG = save(noise(), "JPEG")
PROGRESSIVE = save(noise(), "JPEG", progressive=True)
ISO_BOX = b"\0\0\0\x18ftyp"
HTML = b"<!DOCTYPE html>\n<title>404 Not Found</title>"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'
BAD = {  # name: (its bytes, or what makes it at a path; a part of the reason)
    "empty.jpg": (b"", "the file is empty"),
    "one byte.jpg": (b"\xff", "not a picture, or cut off"),
    "jpeg at 1 %.jpg": (part(JPEG, 0.01), "cut off"),
    "jpeg at 10 %.jpg": (part(JPEG, 0.1), "cut off"),
    "jpeg at 50 %.jpg": (part(JPEG, 0.5), "cut off"),
    "jpeg at 95 %.jpg": (part(JPEG, 0.95), "cut off"),
    "progressive jpeg at 95 %.jpg": (part(PROGRESSIVE, 0.95), "cut off"),
    "jpeg with garbage after its header.jpg": (JPEG[:200] + random.bytes(2000), "damaged"),
    "half a png.png": (part(save(noise()), 0.5), "cut off"),
    "png with a wrong checksum of its header.png": (flip_checksum(save(noise()), b"IHDR"), "not a picture, or cut off"),
    "png with a wrong checksum of its pixels.png": (flip_checksum(save(noise()), b"IDAT"), "damaged"),
    "half a gif.gif": (part(save(noise(), "GIF"), 0.5), "cut off"),
    "half a webp.webp": (part(save(noise(), "WEBP"), 0.5), "cut off"),
    "half a tiff.tif": (part(save(noise(), "TIFF"), 0.5), "cut off"),
    "half a bmp.bmp": (part(save(noise(), "BMP"), 0.5), "cut off"),
    "floating point.tif": (save(Image.new("F", (16, 16), 0.5), "TIFF"), "floating-point values"),
    "web page.jpg": (HTML, "HTML, not a picture"),
    "web page behind blanks.jpg": (b"\xef\xbb\xbf\r\n\r\n" + HTML.lower(), "HTML, not a picture"),
    "drawing.png": (SVG, "an SVG drawing, not a picture"),
    "feed.png": (b'<?xml version="1.0"?>\n<rss/>', "XML, not a picture"),
    "text.jpg": ("Zugriff verweigert: Schlüssel ungültig".encode(), "plain text, not a picture"),
    "paper.jpg": (b"%PDF-1.7\n%\xe2\xe3", "a PDF document, not a picture"),
    "zip.png": (zipped(), "a zip, not a picture"),
    "gzip.png": (b"\x1f\x8b\x08\0" + random.bytes(99), "a gzip file, not a picture"),
    "program.jpg": (b"\x7fELF\2\1\1\0" + random.bytes(99), "a program, not a picture"),
    "heic.jpg": (ISO_BOX + b"heic\0\0\0\0mif1heic", "a HEIC picture, which is not read here: convert"),
    "avif.jpg": (ISO_BOX + b"mif1\0\0\0\0mif1avif", "an AVIF picture, which is not read here: convert"),
    "jxl.jpg": (b"\xff\x0a" + random.bytes(99), "a JPEG XL picture, which is not read here: convert"),
    "video.jpg": (ISO_BOX + b"isom\0\0\2\0isomiso2", "a video, not a picture"),
    "git lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    "zeros.jpg": (bytes(5000), "zeros, not a picture"),
    "random.jpg": (b"\0" + random.bytes(5000), "not a picture, or cut off"),
    "bomb.png": (claim_size(50_000, 50_000), "too large"),
    "bomb that Pillow warns of.png": (claim_size(12_000, 9_000), "too large: 12000 x 9000 pixels"),
    "bomb.ppm": (b"P6 50000 50000 255\n", "too large"),
    "counter.gif": (save(noise(1, 1), "GIF"), "too small: 1 x 1 pixels"),
    "strip.png": (save(noise(8, 900)), "a strip: 8 x 900 pixels"),
    "long.bmp": (too_long, f"too large: {MAX_BYTES + 1:,} bytes"),
    "link to a pipe.jpg": (link_to_pipe, "not a regular file"),
    "link to zeros without end.jpg": (link_to("/dev/zero"), "not a regular file"),
    "duplicate.png": (GOOD[0], "the same bytes as good/0.png"),
    "other folder/duplicate.png": (GOOD[1], "the same bytes as good/1.png"),
}


def make_bad_folder(folder):
    "Good pictures in `good` and bad ones in `later`; returns the bad ones' names, and a part of each one's reason."
    (folder / "good").mkdir(parents=True)
    for number, data in enumerate(GOOD):
        (folder / "good" / f"{number}.png").write_bytes(data)
    for name, (content, _) in BAD.items():
        path = folder / "later" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
    return {f"later/{name}": reason for name, (_, reason) in BAD.items()}
