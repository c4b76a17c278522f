"""How fast a chunk becomes a spectrogram and a tile, against scipy and torch, in one run.

    python benchmarks/tile_throughput.py [--samples 4000000] [--repetitions 15] [--threads 2] [--device cpu|cuda]

Every contender transforms the same samples (nfft 4096, hop 2048, Hann). Repetitions are interleaved, so that all meet the same
load; the table has minimum and median. Spectrograms are power in single precision, frequencies ascending, but ShortTimeFFT's,
which is complex in double precision by default and is also timed on samples of single precision. "Bare batched FFT" is the
transform alone of frames that are windowed already, in blocks that stay in cache and into memory at hand: nothing is faster
with this library. "Naive batched FFT" is `torch.fft.fft(frames * window)` in one go.

Prediction, written before the first run of this program, from timings of the single stages: the spectrogram 8 times as fast as
ShortTimeFFT and 1.8 times as fast as torch.stft; the whole tile within 1.5 times the naive batched FFT, and more than twice the
bare one, because window, power, averages, logarithm and ranking each go through memory once more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.signal import ShortTimeFFT

from longhaul.signals.front_end import FrontEnd

NFFT, HOP = 4096, 2048
Contenders = dict[str, Callable[[], object]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4_000_000)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    iq = torch.randn(arguments.samples, dtype=torch.complex64, generator=generator).to(arguments.device)
    contenders = {**ours(iq), **torchs(iq), **(scipys(iq.numpy(), arguments.threads) if arguments.device == "cpu" else {})}
    check(contenders)
    times = measure(contenders, arguments.repetitions)
    print(f"{arguments.samples} samples, nfft {NFFT}, hop {HOP}, {arguments.device}, {arguments.threads} threads, ", end="")
    print(f"{arguments.repetitions} repetitions, interleaved; torch {torch.__version__}")
    report(times)


def ours(iq: torch.Tensor) -> Contenders:
    """The front end: the spectrogram alone, the whole tile, and the tile as bytes."""
    front_end = FrontEnd(nfft=NFFT, hop=HOP)
    return {
        "spectrogram": lambda: front_end.spectrogram(iq),
        "tile": lambda: front_end(iq),
        "tile, uint8": lambda: front_end.to_uint8(iq),
    }


def torchs(iq: torch.Tensor) -> Contenders:
    """What torch has: `torch.stft`, a batched FFT in one go, and the FFT alone."""
    window = torch.hann_window(NFFT, device=iq.device)
    window = window / window.sum()
    framed = iq.unfold(0, NFFT, HOP)
    block = 64 if iq.device.type == "cpu" else len(framed)
    ready = (framed[:block] * window).contiguous()
    result = torch.empty_like(ready)

    def stft() -> torch.Tensor:
        return torch.stft(iq, NFFT, HOP, window=window, center=False, return_complex=True)

    def stft_power() -> torch.Tensor:
        spectrum = stft()
        return torch.fft.fftshift(spectrum.real.square() + spectrum.imag.square(), dim=0).T

    def naive_power() -> torch.Tensor:
        spectrum = torch.fft.fft(framed * window)
        return torch.fft.fftshift(spectrum.real.square() + spectrum.imag.square(), dim=1)

    def bare() -> None:
        for first in range(0, len(framed), block):
            count = min(block, len(framed) - first)
            torch.fft.fft(ready[:count], out=result[:count])

    return {
        "torch.stft": stft,
        "torch.stft, power": stft_power,
        "naive batched FFT, power": naive_power,
        "naive batched FFT": lambda: torch.fft.fft(framed * window),
        "bare batched FFT": bare,
    }


def scipys(iq: np.ndarray, threads: int) -> Contenders:
    """`scipy.signal.ShortTimeFFT`, the frames that lie within the samples alone."""
    window = np.hanning(NFFT + 1)[:-1]
    frames = (len(iq) - NFFT) // HOP + 1
    first = NFFT // 2 // HOP

    def contender(window: np.ndarray) -> Callable[[], np.ndarray]:
        transform = ShortTimeFFT(window / window.sum(), HOP, 1.0, fft_mode="centered")
        return lambda: transform.spectrogram(iq, p0=first, p1=first + frames).T

    return {"ShortTimeFFT": contender(window), "ShortTimeFFT, single": contender(window.astype(np.float32))}


def check(contenders: Contenders) -> None:
    """All spectrograms are the same, or their times could not be compared."""
    mine = contenders["spectrogram"]()
    assert isinstance(mine, torch.Tensor)
    for name in ("torch.stft, power", "naive batched FFT, power", "ShortTimeFFT", "ShortTimeFFT, single"):
        if name in contenders:
            theirs = torch.as_tensor(contenders[name]()).to(mine)
            assert mine.shape == theirs.shape, (name, mine.shape, theirs.shape)
            assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-4 * float(mine.mean())), name


def measure(contenders: Contenders, repetitions: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other in every repetition."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begun)
    return times


def report(times: dict[str, list[float]]) -> None:
    """A line each, and the ratios that were aimed at."""
    print("| what | min, ms | median, ms |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * min(seconds):.1f} | {1e3 * statistics.median(seconds):.1f} |")
    print("\n| ratio | aim | by min | by median |\n|---|---|---|---|")
    for over, under, aim in (
        ("ShortTimeFFT", "spectrogram", "8 or more"),
        ("ShortTimeFFT, single", "spectrogram", ""),
        ("torch.stft", "spectrogram", "1.8 or more"),
        ("torch.stft, power", "spectrogram", ""),
        ("tile", "naive batched FFT", "1.5 or less"),
        ("tile", "spectrogram", ""),
        ("tile", "bare batched FFT", ""),
    ):
        if over in times:
            lowest, middle = (figure(times[over]) / figure(times[under]) for figure in (min, statistics.median))
            print(f"| {over} / {under} | {aim} | {lowest:.2f} | {middle:.2f} |")


if __name__ == "__main__":
    main()
