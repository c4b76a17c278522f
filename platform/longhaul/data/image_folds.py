"""Parts of a set of labelled images: the same share of every class held out, or one fold of several."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from longhaul.errors import UserError

Named = tuple[str, int]
"""An image: its id and the index of its class."""


def hold_out(images: Sequence[Named], share: float, seed: int) -> tuple[list[Named], list[Named]]:
    """The same share of each class, drawn by ids and `seed` alone; at least one image of each where a class has two or more.

    Returns:
        What is kept, and what is held out.
    """
    classes: dict[int, list[str]] = {}
    for name, label in images:
        classes.setdefault(label, []).append(name)
    kept: list[Named] = []
    held: list[Named] = []
    for label, names in sorted(classes.items()):
        names.sort()
        keys = [hashlib.sha256(f"{seed}|{name}".encode()).hexdigest() for name in names]
        drawn = [names[i] for i in np.argsort(keys)]
        count = min(max(round(share * len(names)), 1), len(names) - 1) if share else 0
        held += [(name, label) for name in drawn[:count]]
        kept += [(name, label) for name in drawn[count:]]
    return kept, held


def one_fold(
    images: Sequence[Named], classes: Sequence[str], folds: int, fold: int, seed: int
) -> tuple[list[Named], list[Named]]:
    """Images dealt into `folds` parts with the same share of every class in each: `sklearn.model_selection.StratifiedKFold`.

    Args:
        images: to deal; their order does not matter.
        classes: names by index, for errors.
        folds: how many parts, at least 2.
        fold: which part is held out, from 0.
        seed: shuffles the images before.

    Returns:
        What is kept (all other parts), and what is held out.

    Raises:
        UserError: a class has fewer images than there are folds, so that some fold could not measure it.
    """
    from sklearn.model_selection import StratifiedKFold

    ordered = sorted(images)
    labels = [label for _, label in ordered]
    scarce, count = min(Counter(labels).items(), key=lambda found: (found[1], found[0]))
    if count < folds:
        problem = f"data.folds {folds}: class {classes[scarce]} has {count} images outside the test split"
        raise UserError(problem, f"Set data.folds to at most {count}" if count > 1 else "Add images of that class")
    dealer = StratifiedKFold(folds, shuffle=True, random_state=seed)
    kept, held = list(dealer.split(labels, labels))[fold]
    return [ordered[index] for index in kept], [ordered[index] for index in held]
