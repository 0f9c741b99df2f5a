"""What things are called: nouns of the COCO classes and of garments, plurals, and colour words.

The synonyms of a class (with its hypernyms) are true of every instance; its candidate nouns are all
that someone might call an instance. Sentences use synonyms, and are unique among all things that
the noun is a candidate for.
"""

from __future__ import annotations

from functools import cache

# class -> more nouns that are true of every instance
SYNONYMS = {
    "bicycle": "bike",
    "car": "vehicle, automobile",
    "motorcycle": "motorbike, bike, vehicle",
    "airplane": "plane, aircraft",
    "bus": "vehicle",
    "truck": "vehicle",
    "traffic light": "stoplight",
    "fire hydrant": "hydrant",
    "parking meter": "meter",
    "bird": "animal",
    "cat": "animal, pet",
    "dog": "animal, pet",
    "horse": "animal",
    "sheep": "animal",
    "cow": "animal",
    "elephant": "animal",
    "bear": "animal",
    "zebra": "animal",
    "giraffe": "animal",
    "backpack": "bag",
    "handbag": "bag",
    "tie": "necktie",
    "suitcase": "luggage",
    "snowboard": "board",
    "sports ball": "ball",
    "baseball bat": "bat",
    "baseball glove": "glove",
    "skateboard": "board",
    "surfboard": "board",
    "tennis racket": "racket",
    "wine glass": "glass",
    "fork": "utensil",
    "knife": "utensil",
    "spoon": "utensil",
    "banana": "fruit",
    "apple": "fruit",
    "orange": "fruit",
    "broccoli": "vegetable",
    "carrot": "vegetable",
    "donut": "doughnut",
    "chair": "seat",
    "couch": "sofa",
    "potted plant": "plant",
    "dining table": "table",
    "tv": "television, screen",
    "laptop": "computer",
    "mouse": "computer mouse",
    "remote": "remote control",
    "cell phone": "phone, mobile phone",
    "oven": "stove",
    "refrigerator": "fridge",
    "teddy bear": "stuffed animal",
    "hair drier": "hair dryer",
    "jeans": "pants, trousers",
    "pants": "trousers",
    "blazer": "jacket",
    "t-shirt": "shirt, tee shirt",
    "sunglasses": "glasses",
    "purse": "bag",
    "boots": "footwear",
    "heels": "shoes, high heels",
    "pumps": "shoes",
    "flats": "shoes",
    "sandals": "shoes",
    "sneakers": "shoes",
    "loafers": "shoes",
    "wedges": "shoes",
}
# class -> nouns that someone might use for an instance, but that are not used here
CONFUSABLE = {
    "bicycle": "vehicle",
    "car": "truck",
    "bus": "car, truck",
    "train": "vehicle, bus",
    "truck": "car, bus",
    "boat": "vehicle",
    "airplane": "vehicle",
    "bench": "seat, chair",
    "suitcase": "bag, backpack, handbag",
    "handbag": "purse, backpack, suitcase",
    "backpack": "handbag, suitcase",
    "cup": "glass, wine glass, bowl",
    "wine glass": "cup",
    "bowl": "cup",
    "bottle": "glass, vase",
    "vase": "bottle, cup, bowl",
    "potted plant": "vase",
    "dining table": "desk",
    "couch": "seat, chair",
    "toilet": "seat",
    "bed": "couch, seat",
    "chair": "couch, bench",
    "laptop": "screen, keyboard, tv",
    "keyboard": "computer",
    "tv": "computer, laptop",
    "cell phone": "screen, remote",
    "remote": "phone, cell phone",
    "microwave": "oven, toaster",
    "oven": "microwave",
    "toaster": "oven, microwave",
    "teddy bear": "bear, animal, dog, cat",
    "sheep": "cow",
    "cow": "sheep",
    "donut": "cake",
    "hot dog": "sandwich",
    "pizza": "sandwich",
    "sandwich": "hot dog",
    "skateboard": "snowboard, surfboard",
    "snowboard": "skis, skateboard",
    "knife": "fork, spoon",
    "fork": "knife, spoon",
    "spoon": "knife, fork",
    "book": "laptop",
    "boots": "shoes",
    "hoodie": "jacket",
    "cardigan": "jacket",
    "vest": "jacket",
    "cape": "coat, jacket",
    "jacket": "blazer, coat",
    "coat": "jacket, blazer",
    "suit": "jacket, blazer, pants, coat",
    "dress": "skirt, top, coat",
    "skirt": "dress",
    "romper": "dress, shorts",
    "bodysuit": "top, dress",
}
# garments that are easily taken for each other: each may be called by the name of any other
LOOK_ALIKE = (
    "blouse, shirt, top, t-shirt, sweater, jumper, cardigan, sweatshirt, hoodie, vest",
    "pants, jeans, leggings, tights, stockings",
    "bag, purse, wallet",
    "boots, clogs, flats, heels, loafers, pumps, sandals, shoes, sneakers, wedges",
    "glasses, sunglasses",
    "hat, hair",
)
# not described: no object, a part of another thing, or better left alone
UNREFERRED = frozenset(
    "null, skin, accessories, intimate, bra, panties, swimwear, bodysuit, romper".split(", ")
)
# no photo of a pet, a horse or a pedestrian shows these
RARE = frozenset(
    "airplane, boat, elephant, bear, zebra, giraffe, cow, sheep, train, toilet, surfboard, "
    "snowboard, pizza, microwave, toaster, oven, hot dog, donut, broccoli, stop sign".split(", ")
)
ALWAYS_PLURAL = frozenset(
    "skis, scissors, boots, clogs, flats, heels, high heels, leggings, loafers, pants, trousers, "
    "jeans, pumps, sandals, shoes, shorts, sneakers, socks, stockings, tights, wedges, glasses, "
    "sunglasses, gloves, earrings".split(", ")
)
MASS = frozenset("broccoli, luggage, footwear, hair, fruit".split(", "))
IRREGULAR = {
    "person": "people",
    "knife": "knives",
    "sheep": "sheep",
    "mouse": "computer mice",
    "computer mouse": "computer mice",
    "skis": "",
}
COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "black", "white", "gray"),
)
# colours that people take for one another under some light
NEAR_COLOURS = {
    "red": "pink, orange, brown, purple",
    "orange": "red, yellow, brown, pink",
    "yellow": "orange, green, brown, white",
    "green": "yellow, blue",
    "blue": "purple, green, gray, black",
    "purple": "pink, blue, red",
    "pink": "red, purple, orange, white",
    "brown": "orange, red, yellow, black, gray",
    "black": "gray, blue, brown",
    "white": "gray, yellow, pink",
    "gray": "white, black, blue, brown",
}
# their masks show other things too, or their colour is in their name
COLOURLESS = frozenset(
    "dining table, wine glass, tv, laptop, bowl, sink, orange, pizza, sandwich, cake, hot dog, "
    "traffic light, book, person, hair, bed, vase".split(", ")
)


def _words(text: str) -> set[str]:
    return set(text.split(", ")) if text else set()


def synonyms(name: str) -> tuple[str, ...]:
    """Nouns that are true of every instance of a class; the name of the class is the first."""
    return (name, *(SYNONYMS[name].split(", ") if name in SYNONYMS else ()))


@cache
def candidate_nouns(name: str) -> frozenset[str]:
    """All nouns that an instance of a class might be called."""
    alike = {word for group in LOOK_ALIKE if name in _words(group) for word in _words(group)}
    names = {name} | alike | _words(CONFUSABLE.get(name, ""))
    return frozenset(names | {word for other in names for word in synonyms(other)[1:]})


def plural(noun: str) -> str:
    """The plural of a noun, or "" where it has none that people use."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun in ALWAYS_PLURAL | MASS:
        return ""
    return noun + ("es" if noun.endswith(("s", "ch", "sh", "x")) else "s")


@cache
def near_colours(colour: str) -> frozenset[str]:
    """Colours that may be taken for this one."""
    return frozenset(_words(NEAR_COLOURS[colour]))
