"""What the small model does: a clip by a sentence, by a mask and by both, and photos by sentences.

    python tools/demo.py output/demo

Clips and photos come with packages of the index. Besides the results of the inference tools the
folder receives picture.png: frames of all overlays on one sheet.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from tools import infer_image, infer_video
from unified.errors import UnifiedError
from unified.inference.image_io import read_image, write_image
from unified.inference.predictor import resize_image
from unified.inference.video_io import FrameReader
from unified.samples import sample_path

CLIP, PERSON = "carphone", "the man"
PHOTOS = {"cat": ("the cat", "a sheep"), "astronaut": ("the woman", "a pizza")}
LAST_FRAME = 60
HEIGHT = 160  # of a tile, pixels


def segment_clip(folder: Path, *prompts: str) -> Path:
    """Runs tools/infer_video.py; returns its overlay."""
    clip = ["--input", str(sample_path(CLIP)), "--end", str(LAST_FRAME)]
    _check(infer_video.main([*clip, *prompts, "--output", str(folder)]))
    return folder / "overlay.mp4"


def segment_photo(folder: Path, name: str, sentences: Sequence[str]) -> Path:
    """Runs tools/infer_image.py; returns its overlay."""
    texts = [word for sentence in sentences for word in ("--text", sentence)]
    _check(infer_image.main(["--input", str(sample_path(name)), *texts, "--output", str(folder)]))
    (overlay,) = (folder / "overlay").iterdir()
    return overlay


def _check(code: int) -> None:
    if code:
        sys.exit(code)  # the tool has said why


def sheet(clips: Sequence[Path], photos: Sequence[Path]) -> np.ndarray:
    """One row per clip with its first, middle and last frame, then a row of photos."""
    rows = []
    for path in clips:
        with FrameReader(path) as reader:
            frames = list(reader)
        rows.append([frames[0], frames[len(frames) // 2], frames[-1]])
    rows.append([read_image(path) for path in photos])
    tiles = [
        np.concatenate([resize_image(x, (HEIGHT, x.shape[1] * HEIGHT // len(x))) for x in row], 1)
        for row in rows
    ]
    width = max(row.shape[1] for row in tiles)
    return np.concatenate(
        [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0))) for row in tiles]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or the code of the tool that failed."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1:
        print("usage: python tools/demo.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(words[0])
    try:
        told = segment_clip(folder / "sentence", "--text", PERSON)
        mask = folder / "sentence/masks/00000.png"
        shown = segment_clip(folder / "mask", "--mask", str(mask))
        both = segment_clip(folder / "both", "--mask", str(mask), "--text", f"1={PERSON}")
        photos = [segment_photo(folder / name, name, texts) for name, texts in PHOTOS.items()]
        write_image(folder / "picture.png", sheet([told, shown, both], photos))
    except UnifiedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"look at {folder}/picture.png, and at the overlays beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
