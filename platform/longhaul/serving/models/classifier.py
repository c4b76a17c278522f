"""From the bytes of a picture to ranked labels: plain Python, without HTTP and without Ray."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from longhaul.data.preprocess import ImagePreprocess, to_rgb
from longhaul.engines.inference import Array, InferenceEngine, only_input
from longhaul.errors import IntegrityError, UserError
from longhaul.serving.refusals import BrokenImage, ImageTooLarge, InvalidParameter
from longhaul.workloads.base import Signature

# Formats that Pillow decodes by itself. Others would start a program (EPS) or open what the body points to.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
DEFAULT_TOP_K = 5
MEBIBYTE = 1 << 20


class Prediction(BaseModel):
    """One answer: the class's name, its index, and its probability (0..1)."""

    model_config = ConfigDict(frozen=True)

    label: str
    index: int
    probability: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class ImageLimits:
    """What a client may send: bytes of the encoded picture, and pixels (width x height) of the decoded one."""

    bytes: int = 16 * MEBIBYTE
    pixels: int = 40_000_000


class Classifier:
    """A classification model behind an engine.

    Args:
        engine: loaded; its first output is the logits.
        signature: from the model's manifest.
        limits: bounds on what a client sends.

    Raises:
        UserError: the model is none that classifies pictures.
        IntegrityError: the signature contradicts itself.
    """

    def __init__(self, engine: InferenceEngine, signature: Signature, limits: ImageLimits | None = None) -> None:
        if signature.task != "classification":
            raise UserError(f"a model of task {signature.task!r} cannot be served here", "Choose a classification model")
        self.engine = engine
        self.limits = limits or ImageLimits()
        self._output = signature.outputs[0].name
        self._input_shape = only_input(signature).shape
        self.classes = signature.classes
        try:
            self._preprocess = ImagePreprocess(**signature.preprocess)
        except ValidationError as error:
            raise IntegrityError(f"the signature's preprocess is no ImagePreprocess ({error})") from error
        if self._input_shape[1:] != (self._preprocess.resolution,) * 2 or signature.outputs[0].shape != (len(self.classes),):
            raise IntegrityError("the signature's shapes do not fit its classes and its preprocess")

    def __call__(self, body: bytes, top_k: int | None = None) -> list[Prediction]:
        """Classify one encoded picture; the best `top_k` classes (default 5, or all if there are fewer), best first.

        Raises:
            Refusal: the picture or `top_k` is not right.
        """
        self.check_top_k(top_k)
        sample = self.read(body)
        return self.rank(self.engine.infer(sample[None])[self._output][0], top_k)

    def read(self, body: bytes) -> Tensor:
        """Decode and preprocess: (3, R, R) float32.

        Raises:
            BrokenImage: empty, cut short, or no picture in one of `FORMATS`.
            ImageTooLarge: over the limits; found before anything is decoded.
        """
        if not body:
            raise BrokenImage("the image is empty (0 bytes)", "Send the bytes of a PNG or JPEG file")
        if len(body) > self.limits.bytes:
            raise ImageTooLarge(f"the image has {len(body):,} bytes, the limit is {self.limits.bytes:,}", "Send a smaller one")
        return self._preprocess(self._decode(body))

    def rank(self, logits: Array, top_k: int | None = None) -> list[Prediction]:
        """Softmax of one sample's logits (C,), and the best classes of it.

        Raises:
            RuntimeError: a logit is NaN or infinite: the model is broken, not the request.
        """
        if not np.isfinite(logits).all():
            raise RuntimeError("the model answered with a number that is not finite")
        scores = np.exp(logits.astype(np.float64) - float(logits.max()))
        probabilities = scores / scores.sum()
        count = min(DEFAULT_TOP_K, len(self.classes)) if top_k is None else top_k
        best = np.argsort(-probabilities, kind="stable")[:count]
        return [Prediction(label=self.classes[i], index=int(i), probability=float(probabilities[i])) for i in best]

    def answer(self, outputs: dict[str, Array], top_k: int | None = None) -> list[Prediction]:
        """`rank` on one sample's outputs by name, without a batch dimension."""
        return self.rank(outputs[self._output], top_k)

    def check_top_k(self, top_k: int | None) -> None:
        """Raise InvalidParameter unless 1 <= `top_k` <= the number of classes (None passes)."""
        if top_k is not None and not 1 <= top_k <= len(self.classes):
            raise InvalidParameter(f"top_k {top_k}: the model has {len(self.classes)} classes", f"Give 1..{len(self.classes)}")

    def _decode(self, body: bytes) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(body), formats=FORMATS)  # reads the header only
            pixels = image.width * image.height
            if pixels <= self.limits.pixels:
                return to_rgb(image)
        except UnidentifiedImageError:
            raise BrokenImage("the body is no image", f"Send one of {', '.join(FORMATS)}") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageTooLarge(f"the image has too many pixels ({error})", "Send a smaller one") from None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - damaged bytes make decoders raise nearly anything: OSError, struct.error
            # "<_io.BytesIO object at 0x...>" in Pillow's own words says nothing to a client.
            reason = re.sub(r"\s*<_io\.\w+[^>]*>", "", str(error)) or type(error).__name__
            raise BrokenImage(f"the image is broken ({reason})", "Send the whole file") from None
        raise ImageTooLarge(
            f"the image has {image.width} x {image.height} pixels, the limit is {self.limits.pixels:,}", "Send a smaller one"
        )
