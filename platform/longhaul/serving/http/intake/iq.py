"""Bare samples as a body: what they are is told by the query or by headers with SigMF's own names."""

from __future__ import annotations

from dataclasses import dataclass

from longhaul.serving.http.intake.signals import ByteFile, Signal, check_frequencies, describe
from longhaul.serving.http.settings import Limits
from longhaul.serving.refusals import BrokenSignal, InvalidParameter
from longhaul.signals.sample_format import SampleFormat

BODY = "the body"
_EXAMPLE = "such as ?datatype=ci16_le&sample_rate=20e6&center_frequency=2.44e9, or the headers X-SigMF-Datatype and so on"


@dataclass(frozen=True)
class IqDescription:
    """What bare samples are, as far as the client says it: SigMF's datatype, samples a second, Hz."""

    datatype: str | None
    sample_rate_hz: float | None
    center_hz: float | None


def sample_format(datatype: str) -> SampleFormat:
    """The format of that name.

    Raises:
        InvalidParameter: there is none, or one of real samples.
    """
    try:
        return SampleFormat.parse(datatype)
    except ValueError as error:
        raise InvalidParameter(f"datatype {error}", "Give one such as cf32_le, ci16_le, ci8 or cu8") from None


def check_description(said: IqDescription, limits: Limits) -> tuple[SampleFormat, float]:
    """Format and sample rate, before the body is read.

    Raises:
        InvalidParameter: the datatype or the sample rate is missing, or no datatype.
        BrokenSignal: a frequency that cannot be.
    """
    if said.datatype is None or said.sample_rate_hz is None:
        missing = "datatype" if said.datatype is None else "sample_rate"
        raise InvalidParameter(f"{missing} is missing: bare samples do not say what they are", f"Give them {_EXAMPLE}")
    form = sample_format(said.datatype)
    check_frequencies(BODY, said.sample_rate_hz, said.center_hz, limits)
    return form, said.sample_rate_hz


def bare_samples(file: ByteFile, said: IqDescription, limits: Limits) -> Signal:
    """The signal in a body of nothing but samples.

    Raises:
        Refusal: its description is wrong, or its length is no whole number of samples.
    """
    form, rate = check_description(said, limits)
    size = file.seek(0, 2)
    samples, rest = divmod(size, form.sample_bytes)
    if rest:
        raise BrokenSignal(
            f"{BODY}: {size:,} bytes are no whole number of {form.name} samples of {form.sample_bytes} bytes",
            "Send it whole, or correct the datatype",
        )
    if not samples:
        raise BrokenSignal(f"{BODY} is empty", "Send samples, I and Q in turn")
    notes = () if form.states_order else (f"datatype {form.name} does not say the byte order; taken as little-endian",)
    return Signal(describe(BODY, form.name, rate, said.center_hz, samples), file, 0, notes)
