"""`longhaul signals make`: synthetic recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from longhaul.cli.export import size_text
from longhaul.cli.option_group import with_options
from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.signals.scene_settings import SceneSettings


@dataclass(frozen=True)
class AirOptions:
    """What the recordings show, beyond their kind."""

    small: Annotated[bool, typer.Option("--small", help="100 ms for ten chunks of 10 ms, instead of 2 s for ten of 200 ms.")] = (
        False
    )
    duration_s: Annotated[float | None, typer.Option(help="Seconds a recording. Default: ten chunks.", show_default=False)] = None
    sample_rate: Annotated[
        float | None,
        typer.Option(metavar="HZ", help="Default: 40e6; for lte_uplink 30.72e6, small 20e6.", show_default=False),
    ] = None
    snr_db: Annotated[
        str,
        typer.Option(metavar="LOW,HIGH", help="Range of the bursts' power over the noise power in their bandwidth, in dB."),
    ] = "15,30"
    clutter: Annotated[
        bool, typer.Option("--clutter", help="The other kinds are on the air too, all at 2.4 GHz, without annotations.")
    ] = False


@with_options(AirOptions, "air")
def make(
    kind: Annotated[
        Literal["wifi_bluetooth", "lte_uplink", "creamy_chicken", "mixed"],
        typer.Argument(help="What is on the air: the detector that the scenes are for, or everything.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder that gets the recordings.", show_default=False)],
    recordings: Annotated[int, typer.Option(min=1, help="How many.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    datatype: Annotated[str, typer.Option(help="SigMF's name of the samples' type, such as cf32_le or ci8.")] = "ci16_le",
    *,
    air: AirOptions,
) -> None:
    """Make synthetic SigMF recordings with exact annotations, to try out and to test a detector.

    Bandwidths, symbol rates and timing are those of the standards; payloads are random. The noise is coloured, bursts overlap,
    and some lie over the edges of the capture, of a chunk and of the band.

    Examples:
      longhaul signals make wifi_bluetooth --small --out recordings/wifi_bluetooth_small
      longhaul signals make lte_uplink --recordings 30 --seed 7 --snr-db 5,20 --out recordings/lte_uplink
      longhaul signals make lte_uplink --small --sample-rate 40e6 --clutter --out recordings/lte_beside_others
    """
    from longhaul.signals.scene_files import refuse_used_folder, write_scenes
    from longhaul.signals.scenes import Scene

    console = Console(highlight=False, soft_wrap=True)
    settings = _settings(kind, air)
    _check_datatype(datatype)
    refuse_used_folder(out)
    paths = write_scenes(settings, out, count=recordings, seed=seed, datatype=datatype)
    try:
        size = 0
        for path in track(paths, f"{kind} scenes", total=recordings, console=console):
            size += path.with_suffix(".sigmf-data").stat().st_size
    except KeyboardInterrupt:
        console.print("stopped; the recordings made so far are complete")
        raise typer.Exit(130) from None
    boxes = sum(len(Scene(settings, seed, number).annotations) for number in range(recordings))
    several = "recordings" if recordings > 1 else "recording"
    console.print(
        f"{recordings} {several} of {settings.duration_s:g} s at {settings.sample_rate_hz / 1e6:g} MS/s, {boxes} annotations, "
        f"{size_text(size)}, written to {escape(str(out))}"
    )
    cut = f" --chunk-s {settings.chunk_s:g} --nfft 1024 --hop 512 --tile 160" if air.small else ""
    console.print(f"next: longhaul signals inspect {escape(str(out / f'{kind}_000.sigmf-meta'))}")
    console.print(f"      longhaul signals chunk {escape(str(out))}{cut} --out {escape(str(Path('tiles') / out.name))}")


def _settings(kind: str, air: AirOptions) -> SceneSettings:
    from longhaul.signals.scene_settings import SceneSettings, preset

    chosen = preset(kind, small=air.small, clutter=air.clutter)
    length = chosen.duration_s if air.duration_s is None else air.duration_s
    if not length >= 0.001:
        raise UserError(f"--duration-s {length:g}: is shorter than a burst", "Give at least 0.001")
    rate = chosen.sample_rate_hz if air.sample_rate is None else air.sample_rate
    if not 2e6 <= rate <= 1e9:
        raise UserError(f"--sample-rate {rate:g}: is not within 2e6 to 1e9 Hz", "Give the samples a second, such as 40e6")
    changes = {"duration_s": length, "sample_rate_hz": rate, "snr_db": _range(air.snr_db)}
    return SceneSettings.model_validate({**chosen.model_dump(), **changes})


def _range(text: str) -> tuple[float, float]:
    """`15,30`, lowest first."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--snr-db {text}: is not a pair of numbers", "Give the lowest and the highest, such as 15,30") from None
    if not -40 <= low <= high <= 80:
        raise UserError(f"--snr-db {text}: is not a range within -40 to 80 dB", "Give the lowest first, such as 15,30")
    return low, high


def _check_datatype(name: str) -> None:
    from longhaul.signals.sample_format import SampleFormat

    try:
        known = SampleFormat.parse(name)
    except ValueError as error:
        raise UserError(f"--datatype {name}: {error}", "Give a complex type of SigMF, such as ci16_le or cf32_le") from error
    if not known.states_order:
        raise UserError(f"--datatype {name}: does not say its byte order", f"Give {name}_le or {name}_be")
