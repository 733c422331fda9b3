"""Labels as pictures in the classes' colours, and a legend of the colours below a picture.

picture(labels, classes).save("photo_mask.png")
drawn = with_legend(plots.overlay(image, labels, colours=classes.colours), classes)
"""

import numpy as np

from lab.data.classes import Classes


def picture(labels: np.ndarray, classes: Classes):
    """Labels (H, W) as a Pillow image, for a PNG file, with the values of the training's masks.

    One class is 0 and 255. For several classes, colours are RGB; numbers up to 255 have a palette, that of the
    training's masks or black with a colour for each class; larger numbers are 16 bits.
    """
    from PIL import Image

    if classes.num == 1:
        return Image.fromarray(labels * np.uint8(255))
    if classes.kind == "colour":
        colours = np.array(classes.values)[:, None] >> [16, 8, 0] & 255
        return Image.fromarray(colours.astype(np.uint8)[labels])
    drawn = Image.fromarray(classes.to_values(labels))
    if max(classes.values) <= 255:
        palette = np.zeros((256, 3), np.uint8)
        palette[list(classes.values[1:])] = classes.colours
        drawn.putpalette(classes.palette or palette.ravel().tolist())
    return drawn


def with_legend(drawn: np.ndarray, classes: Classes) -> np.ndarray:
    """A picture (H, W, 3), uint8, above a white strip with each class's colour and name; one class needs none."""
    if classes.num == 1:
        return drawn
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    height, width = drawn.shape[:2]
    size = max(12, width // 60)  # of letters, in pixels: readable on small and on large pictures
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)  # of many alphabets
    places, x, y, right = [], size // 2, height + size // 2, width
    for name in classes.names:
        length = round(2.4 * size + font.getlength(name))  # with the square before it and a gap behind it
        if x > size // 2 and x + length > max(width, 20 * size):
            x, y = size // 2, y + round(1.5 * size)
        places.append((x, y))
        x += length
        right = max(right, x)
    canvas = Image.new("RGB", (right, y + round(1.5 * size)), "white")
    canvas.paste(Image.fromarray(drawn), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (x, y), name, colour in zip(places, classes.names, classes.colours, strict=True):
        draw.rectangle((x, y, x + size - 1, y + size - 1), colour, "black")
        draw.text((x + 1.4 * size, y + size / 2), name, "black", font, anchor="lm")
    return np.asarray(canvas)
