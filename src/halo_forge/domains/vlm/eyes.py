"""An image's bytes -> what one model reads of it: its placeholders in the text, and the tensors of its pixels.

Both come from the model's own processor, image by image, so that what is trained is what a server will see. What was
worked out for an image is kept as long as there is room: in the second epoch nothing is decoded again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halo_forge.chat.placeholders import Spelled
from halo_forge.chat.records import MediaPart, Medium
from halo_forge.domains.media import PROCESSOR_FILES
from halo_forge.domains.vlm.families import FAMILIES, Family
from halo_forge.errors import DataError, ModelNotFound, RowError, UsageError
from halo_forge.media.images import INSTALL, read_image
from halo_forge.media.store import read_medium
from halo_forge.models.inspection import read_json_object
from halo_forge.models.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch

KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a processor makes of one image: the text in its marker's place, the model's inputs, what was done to it."""

    text: str
    inputs: dict[str, torch.Tensor]
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.inputs.values())


@dataclass(slots=True)
class Eyes:
    """One model's processor. Picklable: what was kept stays behind."""

    directory: Path
    model_type: str
    max_pixels: int | None
    processor: Any
    kept: OrderedDict[str, Seen] = field(default_factory=OrderedDict, repr=False)

    @staticmethod
    def of(directory: Path, tokenizer: Any, max_pixels: int | None) -> Eyes:
        """Raises ModelNotFound where the directory has no processor that fits its model, UsageError without Pillow."""
        config = read_json_object(directory / "config.json")
        model_type = str(config.get("model_type"))
        processor = _processor(directory, model_type, tokenizer)
        eyes = Eyes(directory, model_type, max_pixels, processor)
        expected = config.get("image_token_id", config.get("image_token_index"))
        if expected is not None and expected not in eyes.placeholder_ids:
            raise ModelNotFound(
                f"the processor's image token has id {sorted(eyes.placeholder_ids)}, the model's {expected}",
                where=str(directory), expected="the processor that belongs to the model",
            )  # fmt: skip
        template = getattr(processor, "chat_template", None)
        if template and not (isinstance(template, str) and template == tokenizer.chat_template):
            tokenizer.chat_template = template  # the processor's is the one with images
        return eyes

    def __getstate__(self) -> tuple[Path, str, int | None, Any]:
        return self.directory, self.model_type, self.max_pixels, self.processor

    def __setstate__(self, state: tuple[Path, str, int | None, Any]) -> None:
        self.directory, self.model_type, self.max_pixels, self.processor = state
        self.kept = OrderedDict()

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def marker(self) -> str:
        return str(self.processor.image_token)

    @property
    def placeholder_ids(self) -> frozenset[int]:
        return frozenset(int(token_id) for token_id in self.processor.image_token_ids if token_id is not None)

    def spell(self, part: MediaPart) -> Spelled:
        """What stands in the text for an image. Raises RowError where it cannot be read, or the model refuses it."""
        try:
            seen = self.see(part)
        except DataError as error:
            if isinstance(error, RowError):
                raise
            raise RowError("media_missing", error.what) from None
        return Spelled(seen.text, seen.notes)

    def see(self, medium: MediaPart | Medium) -> Seen:
        """Raises RowError for bytes that are no image, DataError where they are gone or changed."""
        found = self.kept.get(medium.sha256)
        if found is not None:
            self.kept.move_to_end(medium.sha256)
            return found
        name = Path(medium.path).name if not medium.path.startswith("cache:") else "an image inside the row"
        image = read_image(read_medium(medium), name, max_pixels=self.max_pixels)
        seen = self._processed(image.pixels, name, image.notes)
        if medium.sha256:
            self.kept[medium.sha256] = seen
            while len(self.kept) > 1 and sum(one.num_bytes for one in self.kept.values()) > KEPT_BYTES:
                self.kept.popitem(last=False)
        return seen

    def _processed(self, pixels: Any, name: str, notes: tuple[str, ...]) -> Seen:
        from PIL import Image

        try:
            with quiet_transformers():
                made = self.processor(
                    images=[[Image.fromarray(pixels)]], text=[self.marker], return_tensors="pt",
                    return_text_replacement_offsets=True,
                )  # fmt: skip
        except (ValueError, TypeError, ZeroDivisionError, RuntimeError, IndexError) as error:
            height, width = pixels.shape[:2]
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise RowError(
                "image_refused", f"{name}: {width} x {height} pixels, refused by the model's processor ({reason})"
            ) from None
        text = made["text_replacement_offsets"][0][0]["replacement"]
        inputs = {key: made[key] for key in self.family.inputs if key in made}
        return Seen(text, inputs, notes)

    def inputs(self, media: Sequence[Medium]) -> dict[str, torch.Tensor]:
        """The model's inputs for images, in order; {} for none."""
        import torch

        seen = [self.see(medium) for medium in media]
        if not seen:
            return {}
        # Idefics3 has an axis for the row of a batch before that for its images; a packed batch is one row.
        axis = int(seen[0].inputs["pixel_values"].ndim == 5)
        return {key: torch.cat([one.inputs[key] for one in seen], axis) for key in seen[0].inputs}


@dataclass(frozen=True, slots=True)
class GridProcessor:
    """Qwen2-VL's processor for images alone: a placeholder for each `merge_size`^2 patches of the grid that its image
    processor makes. transformers' own insists on a video processor, and that on torchvision."""

    image_processor: Any
    image_token: str
    image_token_ids: tuple[int, ...]
    chat_template: Any

    def __call__(self, images: Any, **options: Any) -> dict[str, Any]:
        made = self.image_processor(images=images[0], return_tensors="pt")
        count = int(made["image_grid_thw"][0].prod()) // self.image_processor.merge_size**2
        return {**made, "text_replacement_offsets": [[{"replacement": self.image_token * count}]]}


def _grid_processor(directory: Path, tokenizer: Any) -> GridProcessor:
    from transformers import AutoImageProcessor

    images = AutoImageProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    token_id = read_json_object(directory / "config.json")["image_token_id"]
    stored = directory / "chat_template.json"
    template = read_json_object(stored).get("chat_template") if stored.is_file() else tokenizer.chat_template
    return GridProcessor(images, tokenizer.convert_ids_to_tokens(token_id), (token_id,), template)


def _processor(directory: Path, model_type: str, tokenizer: Any) -> Any:
    try:
        import PIL.Image  # noqa: F401
        import transformers
    except ImportError:
        raise UsageError("images are read by Pillow, which is not installed", fix=INSTALL) from None
    if not any((directory / name).is_file() for name in PROCESSOR_FILES):
        raise ModelNotFound(
            "this model reads images, and its processor is not here", where=str(directory),
            expected=" or ".join(PROCESSOR_FILES), fix="copy the processor's files of the model there",
        )  # fmt: skip
    try:
        with quiet_transformers():
            if FAMILIES[model_type].grids:
                return _grid_processor(directory, tokenizer)
            kind = getattr(transformers, FAMILIES[model_type].processor)
            processor: Any = kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the files are a stranger's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelNotFound(f"the processor cannot be loaded: {reason}", where=str(directory)) from None
    if not hasattr(processor, "image_token") or not hasattr(processor, "image_token_ids"):
        raise ModelNotFound(f"{type(processor).__name__} has no image token", where=str(directory))
    return processor
