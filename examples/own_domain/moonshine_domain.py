"""The domain's entry: what `halo-forge domains` lists. It imports no torch, because the command line reads it."""

from halo_forge.domains import Domain

MOONSHINE = Domain(
    name="moonshine",
    title="Moonshine",
    reads="audio",
    model_types=("moonshine",),
    opens="moonshine_media:open_moonshine",
    defaults={"model.name": "UsefulSensors/moonshine-tiny", "output.dir": "models/moonshine_sft"},
    note="Speech to text from the raw waveform, as long as it is: no window of 30 s is filled up.",
)
