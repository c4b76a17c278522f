"""Signal to tile: what is where and how bright, the dynamic range, the same pixels however the work is split, refusals."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from longhaul.errors import UserError
from longhaul.signals.dynamic_range import ChunkRange, FixedRange
from longhaul.signals.front_end import FrontEnd, _bytes

SMALL = FrontEnd(nfft=256, hop=128, tile=64)


def noise(samples: int, seed: int = 0, level_db: float = -60.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, dtype=torch.complex64, generator=generator) * 10 ** (level_db / 20)


def tone(samples: int, cycles: float) -> torch.Tensor:
    return torch.exp(2j * torch.pi * cycles * torch.arange(samples, dtype=torch.float64)).to(torch.complex64)


def test_a_tone_at_full_scale_has_0_db_in_its_bin() -> None:
    power = SMALL.spectrogram(tone(4096, 32 / 256))
    assert power.shape == (31, 256)
    assert (power.argmax(dim=1) == 128 + 32).all()
    assert float(10 * power.max().log10()) == pytest.approx(0, abs=1e-4)


def test_time_goes_right_and_frequency_up() -> None:
    iq = noise(100_000)
    iq[60_000:70_000] += tone(10_000, 0.3)
    tile = SMALL(iq)
    row, column = divmod(int(tile.argmax()), 64)
    assert abs(column - 0.65 * 64) <= 4
    assert row == pytest.approx((0.5 - 0.3) * 64, abs=1)
    assert float(tile.max()) == 1.0


def test_power_is_averaged_before_the_logarithm() -> None:
    coarse = FrontEnd(nfft=256, hop=256, tile=16).level(noise(256 * 1600, level_db=0))
    mean_power = 10 * torch.log10(FrontEnd(nfft=256, hop=256).spectrogram(noise(256 * 1600, level_db=0)).mean())
    assert float(coarse.mean()) == pytest.approx(float(mean_power), abs=0.05)  # the mean of the logarithms is 2.5 dB lower


def test_energy_is_kept_whether_the_tile_is_smaller_or_larger_than_the_spectrogram() -> None:
    iq = noise(128 * 40 + 128)
    power = float(SMALL.spectrogram(iq).mean())
    for side in (16, 33, 64, 300, 512):
        level = FrontEnd(nfft=256, hop=128, tile=side).level(iq)
        assert float((10 ** (level.double() / 10)).mean()) == pytest.approx(power, rel=1e-4), side


def test_fewer_frames_than_pixels_are_repeated_in_equal_parts() -> None:
    level = FrontEnd(nfft=256, hop=256, tile=64).level(noise(4 * 256))  # 4 frames on 64 columns
    assert torch.equal(level, level[::16].repeat_interleave(16, dim=0))


def test_pixels_are_the_same_however_many_threads_and_chunks_at_a_time() -> None:
    iq = noise(2 * 150_000).view(2, 150_000)
    for front_end in (SMALL, FrontEnd(nfft=1024, hop=300, tile=100), FrontEnd(nfft=512, hop=512, tile=256, cut=(2, 1))):
        before = torch.get_num_threads()
        try:
            seen = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                seen.append(front_end(iq))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(seen[0], other) for other in seen[1:])
        assert torch.equal(seen[0][1], front_end(iq[1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_picture() -> None:
    iq = noise(400_000)
    iq[60_000:70_000] += tone(10_000, 0.3)
    here, there = FrontEnd().to_uint8(iq), FrontEnd().to_uint8(iq.cuda()).cpu()
    assert int((here.int() - there.int()).abs().max()) <= 1


def test_a_cut_chunk_gives_the_parts_of_the_whole_picture() -> None:
    iq = noise(200_000)
    iq[60_000:70_000] += tone(10_000, 0.3)
    front_end = FrontEnd(nfft=1024, hop=512, tile=32, cut=(3, 2), dynamic_range=FixedRange(low_db=-100, high_db=0))
    parts = front_end(iq)
    whole = ((front_end.level(iq) + 100) / 100).clamp(0, 1).flip(1).T
    assert parts.shape == (6, 32, 32)
    for piece in range(6):
        across, down = divmod(piece, 2)
        assert torch.equal(parts[piece], whole[32 * down : 32 * down + 32, 32 * across : 32 * across + 32])


def test_shapes_follow_the_batch() -> None:
    iq = noise(2 * 3 * 2000).view(2, 3, 2000)
    assert SMALL(iq).shape == (2, 3, 64, 64)
    assert SMALL.to_uint8(iq).dtype == torch.uint8
    assert SMALL.spectrogram(iq).shape == (2, 3, 14, 256)
    assert SMALL.model_copy(update={"cut": (2, 1)})(iq).shape == (2, 3, 2, 64, 64)


def test_halves_are_rounded_up() -> None:
    grey = torch.tensor([0.0, 0.5 / 255, 1.5 / 255, 2.49 / 255, 1.0])
    assert _bytes(grey.clone()).tolist() == [0, 1, 2, 2, 255]


def test_digital_silence_is_black() -> None:
    assert not SMALL.to_uint8(torch.zeros(2000, dtype=torch.complex64)).any()


def test_an_empty_chunk_stays_dark_and_a_signal_is_white() -> None:
    empty = SMALL(noise(200_000))
    assert float(empty.max()) < 0.5
    iq = noise(200_000)
    iq[60_000:70_000] += tone(10_000, 0.3)
    assert float(SMALL(iq).max()) == 1.0
    assert float(SMALL(iq).median()) < 0.15


def test_gain_does_not_change_a_tile_of_the_chunks_own_range() -> None:
    iq = noise(100_000)
    assert torch.equal(SMALL.to_uint8(iq), SMALL.to_uint8(iq * 0.125))


def test_stretches_of_zeros_do_not_take_the_range_of_the_rest() -> None:
    iq = noise(200_000)
    iq[60_000:70_000] += tone(10_000, 0.3)
    iq[100_000:] = 0
    low, high = SMALL.dynamic_range.limits(SMALL.level(iq))
    assert float(high - low) == pytest.approx(80)


def test_a_fixed_range_is_the_same_for_every_chunk() -> None:
    front_end = SMALL.model_copy(update={"dynamic_range": FixedRange(low_db=-100, high_db=0)})
    level = front_end.level(tone(4096, 32 / 256))
    quieter = front_end(tone(4096, 32 / 256) * 0.1)
    assert float(quieter.max()) == pytest.approx((float(level.max()) - 20 + 100) / 100, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nfft": 1000}, "nfft 1000 is no power of two"),
        ({"hop": 5000}, "hop 5000 is above nfft 4096"),
        ({"cut": (0, 1)}, "1 to 64 tiles"),
        ({"dynamic_range": {"kind": "fixed", "low_db": 0, "high_db": -10}}, "low_db 0 is not under high_db -10"),
        ({"dynamic_range": {"kind": "chunk", "least_span_db": 50, "most_span_db": 40}}, "least_span_db 50 is above"),
        ({"version": 2}, "version"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FrontEnd.model_validate(changes)


def test_a_chunk_shorter_than_a_frame_and_samples_of_another_type_are_refused() -> None:
    with pytest.raises(UserError, match=r"255 samples is shorter than nfft 256"):
        SMALL(noise(255))
    with pytest.raises(ValueError, match="complex64"):
        SMALL(torch.zeros(2000))


def test_settings_come_back_from_a_manifest() -> None:
    for chosen in (FrontEnd(), FrontEnd(cut=(4, 2), dynamic_range=FixedRange(low_db=-90, high_db=-20))):
        assert FrontEnd.model_validate(chosen.model_dump(mode="json")) == chosen
    assert isinstance(FrontEnd().dynamic_range, ChunkRange)
