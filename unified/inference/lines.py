"""Lines about objects: one for each in the legend of an overlay, one for all on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unified.inference.legend import NOT_DRAWN, drawable
from unified.structures import Presence

LONGEST_STATE = "(outcompeted by 255)"  # that a legend can come to give for an object
MOST_OBJECTS, MOST_LETTERS = 8, 40  # on the terminal: objects, and letters of their names


def legend(
    captions: Mapping[int, str], scores: Mapping[int, float], found: Mapping[int, Presence]
) -> dict[int, str]:
    """One line for every object with a caption: id, score, name, and why it is not there."""
    return {
        object_id: _legend_line(object_id, score, captions[object_id], found[object_id])
        for object_id, score in sorted(scores.items())
        if object_id in captions
    }


def longest_lines(captions: Mapping[int, str]) -> list[str]:
    """As wide as the lines of ``legend`` can come to be in a clip; words may go to the next row."""
    there = Presence("present")
    plain = [_legend_line(i, 1.0, caption, there) for i, caption in captions.items()]
    return [*plain, LONGEST_STATE] if captions else []


def _legend_line(object_id: int, score: float, caption: str, found: Presence) -> str:
    by = "" if found.by is None else f" by {found.by}"
    state = "" if found.kind == "present" else f" ({found.kind}{by})"
    name = " ".join(caption.split()) if drawable(caption) else NOT_DRAWN
    return f"{object_id}  {score:.2f}{state}  {name}".rstrip()


def about_object(row: Mapping[str, Any], caption: str) -> str:
    """An object of an image, as results.json has it, in a few words."""
    by = f" by {row['by']}" if "by" in row else ""
    state = "" if row["present"] else f" {row['state']}{by}"
    return f"{row['id']} {_short(caption)}{state} {row['score']:.2f}"


def about_track(
    object_id: int,
    caption: str,
    num_present: int,
    num_frames: int,
    best: float,
    outcompeted: Mapping[int, int],
) -> str:
    """An object of a clip in a few words; ``best`` is the highest of its scores.

    Args:
        outcompeted: id of another object that had its pixels -> on how many frames.
    """
    where = f"in {num_present}" if num_present else "in none"
    frames = f"{num_frames} frame{'' if num_frames == 1 else 's'}"
    others = "".join(f", outcompeted by {i} in {num}" for i, num in outcompeted.items())
    return f"{object_id} {_short(caption)} {where} of {frames}{others}, score to {best:.2f}"


def in_one_line(parts: Sequence[str], most: int = MOST_OBJECTS) -> str:
    """What is said about the objects of one input, of many only about the first."""
    more = len(parts) - most
    shown = [*parts[:most], f"and {more} more"] if more > 0 else parts
    return " | ".join(shown) or "nothing found"


def _short(caption: str) -> str:
    text = " ".join(caption.split())
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
