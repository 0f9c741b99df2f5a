"""What the small model does: a clip by a sentence, by a mask and by both, and photos by sentences.

    python tools/demo.py output/demo

Clips and photos come with packages of the index. Besides the results of the inference tools the
folder receives clips.png, frames of the overlays of the clip, photos.png, those of the photos, and
demo.jpg, a row of both. Other models that come with weights and follow points as well are asked
about the photos, if what they need is there.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from unified.commands import MISUSE, run_command
from unified.engine.models import load, model_entries, models
from unified.errors import UnifiedError
from unified.inference.frames import resize_image
from unified.inference.image_io import read_image, write_image
from unified.inference.video_io import FrameReader
from unified.samples import sample_path
from unified.weights import WEIGHTS

TOOLS = Path(__file__).resolve().parent
CLIP, PERSON = "carphone", "the man"
PHOTOS = {"cat": ("the cat",), "astronaut": ("the woman", "the black helmet")}
LAST_FRAME = 60
HEIGHT = 240  # of a tile, pixels


def segment_clip(folder: Path, *prompts: str) -> Path:
    """Returns the overlay."""
    clip = ["--input", str(sample_path(CLIP)), "--end", str(LAST_FRAME)]
    run("infer_video.py", "python tools/infer_video.py", *clip, *prompts, "--output", str(folder))
    return folder / "overlay.mp4"


def segment_photo(folder: Path, name: str, sentences: Sequence[str], *model: str) -> Path:
    """Returns the overlay."""
    texts = [word for sentence in sentences for word in ("--text", sentence)]
    photo = ["--input", str(sample_path(name)), *texts, *model, "--output", str(folder)]
    run("infer_image.py", "python tools/infer_image.py", *photo)
    (overlay,) = (folder / "overlay").iterdir()
    return overlay


def other_models() -> list[str]:
    """Models that come with weights and follow points; those that lack something are named."""
    found = []
    for name in models(points=True):
        entry = model_entries()[name]
        if entry.weights is None or WEIGHTS[entry.weights].bundled is None:
            continue
        try:
            load(name, device="cpu")
        except UnifiedError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        found.append(name)
    return found


def run(tool: str, shown: str, *arguments: str) -> None:
    """Shows and runs what a user would type; a tool that fails has said why."""
    command = [sys.executable, str(TOOLS / tool), *arguments]
    print("$", shown, shlex.join(arguments), flush=True)
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def clip_rows(overlays: Sequence[Path]) -> list[list[np.ndarray]]:
    """First, middle and last frame of each."""
    rows = []
    for path in overlays:
        with FrameReader(path) as reader:
            frames = [frame.image for frame in reader]
        rows.append([frames[0], frames[len(frames) // 2], frames[-1]])
    return rows


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Images (H, W, 3) scaled to one height, side by side in rows."""
    tiles = [
        np.concatenate([resize_image(x, (HEIGHT, x.shape[1] * HEIGHT // len(x))) for x in row], 1)
        for row in rows
    ]
    width = max(row.shape[1] for row in tiles)
    return np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0))) for x in tiles])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or the code of the tool that failed."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1:
        print("usage: python tools/demo.py FOLDER", file=sys.stderr)
        return MISUSE
    return run_command(lambda: make_demo(Path(words[0])))


def make_demo(folder: Path) -> None:
    """Runs the tools and puts what they drew side by side."""
    said = segment_clip(folder / "sentence", "--text", PERSON)
    mask = folder / "sentence/masks/00000.png"
    shown = segment_clip(folder / "mask", "--mask", str(mask))
    both = segment_clip(folder / "both", "--mask", str(mask), "--text", f"1={PERSON}")
    photos = [segment_photo(folder / name, name, texts) for name, texts in PHOTOS.items()]
    clips, stills = clip_rows([said, shown, both]), [read_image(path) for path in photos]
    write_image(folder / "clips.png", sheet(clips))
    write_image(folder / "photos.png", sheet([stills]))
    write_image(folder / "demo.jpg", sheet([[*clips[0][::2], *stills]]))
    for other in other_models():
        chosen = ("--model", other)
        seen = [segment_photo(folder / other / n, n, t, *chosen) for n, t in PHOTOS.items()]
        write_image(folder / f"{other}.png", sheet([[read_image(path) for path in seen]]))
    print(f"look at {folder}/demo.jpg, clips.png and photos.png, and at the overlays beside them")


if __name__ == "__main__":
    sys.exit(main())
