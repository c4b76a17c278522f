"""Dealing groups of samples into parts so that every label is in every part in its share.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011), for whole
groups: the group with the scarcest label is dealt first, to the part that lacks that label most.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence


def deal(groups: Mapping[str, Counter[str]], shares: Sequence[float], seed: int) -> list[list[str]]:
    """Deal groups into parts; no part is empty.

    Args:
        groups: for each group, how often each label is in it; one without labels counts as one of a label of its own.
        shares: of the parts, summing to 1.
        seed: decides between equals, together with the groups' names; nothing else is random.

    Returns:
        The names in each part, sorted.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    if len(groups) < len(shares):
        raise ValueError(f"{len(groups)} groups cannot be dealt into {len(shares)} parts")
    counts = {name: labels or Counter({"": 1}) for name, labels in groups.items()}
    left: Counter[str] = Counter()
    for labels in counts.values():
        left.update(labels)
    lacking = [{label: share * total for label, total in left.items()} for share in shares]
    room = [share * len(groups) for share in shares]
    parts: list[list[str]] = [[] for _ in shares]
    waiting = sorted(counts, key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).digest())
    while waiting:
        empty = [place for place, part in enumerate(parts) if not part]
        open_to = empty if len(empty) >= len(waiting) else range(len(parts))
        scarce = min((label for label in left if left[label] > 0), key=lambda label: (left[label], label))
        name = max(waiting, key=lambda name: counts[name][scarce])  # of equals the first, which is a random one
        place = max(open_to, key=lambda place: (lacking[place][scarce], room[place], -place))
        waiting.remove(name)
        parts[place].append(name)
        room[place] -= 1
        for label, count in counts[name].items():
            lacking[place][label] -= count
            left[label] -= count
    return [sorted(part) for part in parts]
