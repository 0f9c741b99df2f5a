"""MobileSAM that follows sentences: the trained plug-in, a mask for a sentence, printed.

    python examples/mobile_sam.py picture.jpg "the cat"

MobileSAM, the sentence encoder and the classifier come from the package index; the first call says
by which command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import unified
from examples.printing import printed
from unified.commands import MISUSE, run_command
from unified.inference.image_io import read_image
from unified.structures import Prompt


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the mask and its score."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 2:
        print('usage: python examples/mobile_sam.py PICTURE "SENTENCE"', file=sys.stderr)
        return MISUSE
    return run_command(lambda: show(Path(words[0]), words[1]))


def show(picture: Path, sentence: str) -> None:
    """Asks the model for one sentence."""
    predictor = unified.ImagePredictor(unified.load("sam-unifusion-mobile"))
    predictor.set_image(read_image(picture))
    print(printed(*predictor.predict(Prompt(text=sentence))))


if __name__ == "__main__":
    sys.exit(main())
