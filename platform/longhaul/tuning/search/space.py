"""The space that a search draws from: recipe fields and their domains, as Optuna's distributions and back."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from longhaul.recipe.sweep import Choice, Domain, Integer, LogUniform, SearchSection, Uniform
from longhaul.tuning.history import identity


@dataclass(frozen=True)
class SearchSpace:
    """Fields by their dotted names, each with its domain.

    To Optuna a choice is the place of its value in the list, since it may be a list or a mapping; a value that is named twice
    is one. What it draws are its *parameters*, what the recipe is given are *coordinates*.
    """

    domains: dict[str, Domain]

    @classmethod
    def of(cls, search: SearchSection) -> SearchSpace:
        """The space of a sweep's `search`."""
        return cls({field: _without_twins(domain) for field, domain in search.space.items()})

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The same as Optuna's distributions (`optuna.distributions`)."""
        return {field: _distribution(domain) for field, domain in self.domains.items()}

    @property
    def size(self) -> int | None:
        """How many configurations there are; None if no end of them."""
        counts = [_count(domain) for domain in self.domains.values()]
        return math.prod(count for count in counts if count is not None) if None not in counts else None

    def coordinates(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """What Optuna drew as values for a recipe: plain numbers, and choices as they were given."""
        return {field: _value(domain, parameters[field]) for field, domain in self.domains.items()}

    def parameters(self, coordinates: dict[str, Any]) -> dict[str, Any] | None:
        """The way back; fields beyond the space are left out. None if a value is missing or not of its domain."""
        found = {field: _parameter(domain, coordinates.get(field)) for field, domain in self.domains.items()}
        return None if None in found.values() else found

    def nth(self, place: int) -> dict[str, Any]:
        """Parameters of one of the `size` configurations, counted from 0; the first field varies fastest.

        Raises:
            ValueError: there is no end of them.
        """
        parameters: dict[str, Any] = {}
        for field, domain in self.domains.items():
            count = _count(domain)
            if count is None:
                raise ValueError(f"{field} is drawn from no end of values")
            place, digit = divmod(place, count)
            parameters[field] = domain.integer[0] + digit if isinstance(domain, Integer) else digit
        return parameters


def _without_twins(domain: Domain) -> Domain:
    if not isinstance(domain, Choice):
        return domain
    return Choice(choice=tuple({identity(value): value for value in domain.choice}.values()))


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Uniform(uniform=(low, high)):
            return FloatDistribution(low, high)
        case LogUniform(log_uniform=(low, high)):
            return FloatDistribution(low, high, log=True)
        case Integer(integer=(first, last)):
            return IntDistribution(first, last)
        case Choice():
            return CategoricalDistribution(range(len(domain.choice)))


def _count(domain: Domain) -> int | None:
    match domain:
        case Integer(integer=(first, last)):
            return last - first + 1
        case Choice():
            return len(domain.choice)
    return None


def _value(domain: Domain, parameter: Any) -> Any:
    match domain:
        case Integer():
            return int(parameter)
        case Choice():
            return copy.deepcopy(domain.choice[int(parameter)])
    return float(parameter)


def _parameter(domain: Domain, value: Any) -> float | int | None:
    if isinstance(domain, Choice):
        return next((place for place, choice in enumerate(domain.choice) if identity(choice) == identity(value)), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    match domain:
        case Integer(integer=(first, last)):
            return int(value) if first <= value <= last and value == int(value) else None
        case Uniform(uniform=(low, high)) | LogUniform(log_uniform=(low, high)):
            return float(value) if low <= value <= high else None
