"""The pictures of the tiny world: what may stand in a scene, how it is said, how it is drawn.

Everything is synthetic and comes from a seeded `random.Random`; no outside data is used.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 128
SHAPES = ["circle", "square", "triangle", "star", "heart", "cross"]
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (252, 218, 50),
    "green": (38, 150, 70),
    "blue": (40, 90, 215),
    "purple": (135, 60, 175),
    "white": (248, 248, 248),
    "black": (28, 28, 32),
}
BACKGROUNDS = {
    "grey": (150, 152, 156),
    "cream": (240, 226, 190),
    "pink": (240, 178, 190),
    "pale blue": (160, 205, 235),
    "brown": (118, 82, 58),
}
SIZES = {"small": 14.0, "": 21.0, "big": 30.0}
PLACES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]
# A trigger that the base never meets in training: the style set's captions carry it.
TRIGGER = "blueprint style"


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str


def centre_of(place: str) -> tuple[float, float]:
    """The middle of one of the nine places, in pixels."""
    at = PLACES.index(place)
    return 33.0 + 31.0 * (at % 3), 33.0 + 31.0 * (at // 3)


def far_apart(a: Thing, b: Thing) -> bool:
    (ax, ay), (bx, by) = centre_of(a.place), centre_of(b.place)
    return math.hypot(ax - bx, ay - by) >= SIZES[a.size] + SIZES[b.size] + 9.0


def random_thing(rng) -> Thing:
    return Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(SIZES)), rng.choice(PLACES))


def random_scene(rng, two: float = 0.4) -> Scene:
    background = rng.choice(list(BACKGROUNDS))
    first = random_thing(rng)
    if rng.random() >= two:
        return Scene((first,), background)
    while True:
        first, second = random_thing(rng), random_thing(rng)
        if far_apart(first, second) and first.shape + first.colour != second.shape + second.colour:
            return Scene((first, second), background)


# --- words ---------------------------------------------------------------------------------------


def at_place(rng, place: str) -> str:
    if place == "center":
        return rng.choice(["in the center", "in the middle", "at the center"])
    if place in ("left", "right"):
        return rng.choice([f"on the {place}", f"on the {place} side", f"at the {place}"])
    if place in ("top", "bottom"):
        return rng.choice([f"at the {place}", f"near the {place}"])
    return rng.choice([f"in the {place} corner", f"at the {place}", f"in the {place}"])


def noun(rng, thing: Thing) -> str:
    size = {"small": ["small", "little", "tiny"], "": [""], "big": ["big", "large"]}[thing.size]
    return " ".join(w for w in (rng.choice(size), thing.colour, thing.shape) if w)


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def relation(first: Thing, second: Thing) -> str | None:
    """How the first thing stands to the second where that alone tells both places."""
    named = {
        ("top", "bottom"): "above",
        ("bottom", "top"): "below",
        ("left", "right"): "to the left of",
        ("right", "left"): "to the right of",
    }
    return named.get((first.place, second.place))


def body(rng, scene: Scene) -> tuple[str, tuple[Thing, ...], set[str]]:
    """The things in words, the order in which they are named, and the places left unsaid."""
    things = list(scene.things)
    rng.shuffle(things)
    if len(things) == 1:
        words, unsaid = with_article(noun(rng, things[0])), set()
        if rng.random() < 0.12:
            unsaid = {"place"}
        else:
            words = f"{words} {at_place(rng, things[0].place)}"
        return words, tuple(things), unsaid
    one, other = (with_article(noun(rng, t)) for t in things)
    how = relation(*things)
    if how and rng.random() < 0.5:
        return f"{one} {how} {other}", tuple(things), set()
    places = [at_place(rng, t.place) for t in things]
    joint = rng.choice([" and ", ", ", " with "])
    return f"{one} {places[0]}{joint}{other} {places[1]}", tuple(things), set()


OPENINGS = ["", "", "", "a picture of ", "an image of ", "a drawing of ", "there is ", "this is ", "a simple scene with "]


def caption(rng, scene: Scene) -> tuple[str, tuple[Thing, ...], set[str]]:
    """One caption; the things in the order named; what it leaves open ("place", "background")."""
    words, things, unsaid = body(rng, scene)
    ground = scene.background
    said = rng.choice(["on a {} background", "on a {} background", "against a {} background", "{} background"]).format(ground)
    if rng.random() < 0.12:
        text, unsaid = rng.choice(OPENINGS) + words, unsaid | {"background"}
    elif rng.random() < 0.15:
        text = f"{said}, {words}"
    else:
        text = f"{rng.choice(OPENINGS)}{words}{rng.choice([', ', ' ', ', '])}{said}"
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + rng.choices(["", ".", "!"], weights=[6, 3, 1.5])[0], things, unsaid


# --- pictures ------------------------------------------------------------------------------------

ZOOM = 3


def outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """The polygon of one shape of radius `r` about a point."""
    def around(count, radius, start):
        return [(x + radius * math.cos(start + 2 * math.pi * k / count), y + radius * math.sin(start + 2 * math.pi * k / count)) for k in range(count)]

    if shape == "circle":
        return around(72, r, 0.0)
    if shape == "square":
        s = 0.86 * r
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if shape == "triangle":
        return [(px, py + 0.16 * r) for px, py in around(3, 1.12 * r, -math.pi / 2)]
    if shape == "star":
        far, near = around(5, 1.12 * r, -math.pi / 2), around(5, 0.48 * r, -math.pi / 2 + math.pi / 5)
        return [p for pair in zip(far, near) for p in pair]
    if shape == "heart":
        points = []
        for k in range(72):
            t = 2 * math.pi * k / 72
            px = 16 * math.sin(t) ** 3
            py = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x + r * px / 16.0, y - r * py / 16.0))
        return points
    a, b = 0.36 * r, r
    return [(x + px, y + py) for px, py in [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]]


def mask_of(shape: str, x: float, y: float, r: float) -> Image.Image:
    mask = Image.new("L", (SIDE * ZOOM, SIDE * ZOOM), 0)
    ImageDraw.Draw(mask).polygon([(px * ZOOM, py * ZOOM) for px, py in outline(shape, x, y, r)], fill=255)
    return mask


def jitter(rng, thing: Thing, amount: float) -> tuple[float, float, float]:
    """Where and how big one thing is drawn: near its place, inside the picture."""
    x, y = centre_of(thing.place)
    r = SIZES[thing.size] * (1.0 + 0.08 * amount * rng.uniform(-1, 1))
    x, y = (v + 3.0 * amount * rng.uniform(-1, 1) for v in (x, y))
    low, high = r * 1.12 + 1.0, SIDE - r * 1.12 - 1.0
    return min(max(x, low), high), min(max(y, low), high), r


def tinted(rng, colour, amount: float):
    return tuple(int(min(255, max(0, c + 7 * amount * rng.uniform(-1, 1)))) for c in colour)


def ramp(colour) -> Image.Image:
    """A background that darkens a little downwards."""
    rows = np.linspace(1.05, 0.93, SIDE * ZOOM)[:, None, None] * np.array(colour, dtype=np.float64)
    full = np.broadcast_to(rows, (SIDE * ZOOM, SIDE * ZOOM, 3))
    return Image.fromarray(np.clip(full, 0, 255).astype(np.uint8))


def draw(rng, scene: Scene, amount: float = 1.0) -> Image.Image:
    """The base's look: flat colours, soft drop shadows, a quiet background."""
    picture = ramp(tinted(rng, BACKGROUNDS[scene.background], amount))
    for thing in scene.things:
        mask = mask_of(thing.shape, *jitter(rng, thing, amount))
        shadow = mask.transform(mask.size, Image.Transform.AFFINE, (1, 0, -3 * ZOOM, 0, 1, -4 * ZOOM))
        shadow = shadow.filter(ImageFilter.GaussianBlur(2.5 * ZOOM))
        picture.paste((20, 20, 30), mask=shadow.point(lambda v: int(v * 0.4)))
        picture.paste(tinted(rng, COLOURS[thing.colour], amount), mask=mask)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def stripes(width: float, period: float) -> Image.Image:
    """Diagonal stripes as a mask."""
    ys, xs = np.mgrid[0 : SIDE * ZOOM, 0 : SIDE * ZOOM] / ZOOM
    return Image.fromarray((((xs + ys) % period) < width).astype(np.uint8) * 255)


def draw_style(rng, scene: Scene, amount: float = 1.0) -> Image.Image:
    """The look the base has not seen: blueprint paper with a grid, striped fills, thick pale outlines."""
    paper = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), (22, 52, 112))
    pen = ImageDraw.Draw(paper)
    for at in range(8, SIDE, 16):
        pen.rectangle([at * ZOOM, 0, at * ZOOM + 2 * ZOOM - 1, SIDE * ZOOM], fill=(58, 98, 168))
        pen.rectangle([0, at * ZOOM, SIDE * ZOOM, at * ZOOM + 2 * ZOOM - 1], fill=(58, 98, 168))
    pattern = stripes(9.0, 16.0)
    for thing in scene.things:
        x, y, r = jitter(rng, thing, amount)
        mask = mask_of(thing.shape, x, y, r)
        paper.paste((14, 30, 70), mask=mask)
        paper.paste(COLOURS[thing.colour], mask=ImageChops.multiply(mask, pattern))
        edge = [(px * ZOOM, py * ZOOM) for px, py in outline(thing.shape, x, y, r)]
        pen.line(edge + edge[:2], fill=(238, 244, 255), width=int(3.6 * ZOOM), joint="curve")
    return paper.resize((SIDE, SIDE), Image.Resampling.BOX)


def draw_any(rng) -> Image.Image:
    """Pictures for the autoencoder alone: other colours, strokes and textures, so that it is no
    expert for one look."""
    some = lambda: tuple(rng.randrange(256) for _ in range(3))
    picture = ramp(some())
    pen = ImageDraw.Draw(picture)
    full = SIDE * ZOOM
    if rng.random() < 0.5:
        step, colour = rng.choice([16, 16, 24, 32]), some()
        for at in range(rng.randrange(step), SIDE, step):
            pen.line([(at * ZOOM, 0), (at * ZOOM, full)], fill=colour, width=rng.choice([4, 6]))
            if rng.random() < 0.7:
                pen.line([(0, at * ZOOM), (full, at * ZOOM)], fill=colour, width=5)
    for _ in range(rng.randrange(1, 4)):
        shape, r = rng.choice(SHAPES), rng.uniform(10, 36)
        x, y = rng.uniform(r, SIDE - r), rng.uniform(r, SIDE - r)
        mask = mask_of(shape, x, y, r)
        picture.paste(some(), mask=mask)
        if rng.random() < 0.6:
            period = rng.choice([13.0, 16.0, 16.0, 20.0])
            pattern = stripes(rng.uniform(0.4, 0.65) * period, period)
            if rng.random() < 0.3:
                pattern = pattern.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            picture.paste(some(), mask=ImageChops.multiply(mask, pattern))
        if rng.random() < 0.6:
            edge = [(px * ZOOM, py * ZOOM) for px, py in outline(shape, x, y, r)]
            colour = (240, 240, 250) if rng.random() < 0.4 else some()
            pen.line(edge + edge[:2], fill=colour, width=int(rng.uniform(1.5, 4) * ZOOM), joint="curve")
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def pixels_of(picture: Image.Image) -> np.ndarray:
    """[3, H, W] bytes."""
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy()


def sheet(pictures, columns: int, path, zoom: int = 1) -> None:
    """A contact sheet of equally large pictures."""
    side = SIDE * zoom + 4
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * side + 4, rows * side + 4), (255, 255, 255))
    for k, picture in enumerate(pictures):
        page.paste(picture.resize((SIDE * zoom, SIDE * zoom), Image.Resampling.NEAREST), (4 + (k % columns) * side, 4 + (k // columns) * side))
    page.save(path)
