"""The built-in cohorts a study or a command can name."""

from pydantic import BaseModel

from equipoise.datasets.synthetic.params import PresetOptions

#: A function that gives the :class:`~equipoise.datasets.synthetic.params.Preset` of a name.
_PRESET = "equipoise.datasets.synthetic.catalogue:resolve_preset"

PRESETS: dict[str, tuple[str, type[BaseModel], str]] = {
    "tiny": ("2 sites x 8 patients, 0.64 mm slides: for continuous integration", PresetOptions, _PRESET),
    "quick": (
        "256 patients and 128 external ones, 0.51 mm slides at 20x and 40x: the demo",
        PresetOptions,
        _PRESET,
    ),
    "demo": (
        "5 sites x 24 patients of 3 cancers, 2 mm slides in 4 vendors' formats, single-cell reference",
        PresetOptions,
        _PRESET,
    ),
    "showcase": (
        "5 sites x 60 patients, 1.02 mm slides, tasks and RNA missing at some: every step with federation and search",
        PresetOptions,
        _PRESET,
    ),
    "halves": (
        "400 patients, 0.77 mm slides; survival half in the slide, half in omics: image-omics fusion",
        PresetOptions,
        _PRESET,
    ),
    "pancancer": (
        "5 x 96 patients of 5 cancers, one held out, 0.51 mm slides: subtype, MSI, survival from slides and RNA",
        PresetOptions,
        _PRESET,
    ),
    "giga": ("1 mosaic slide of 1.7 gigapixels: for sharding and back-pressure", PresetOptions, _PRESET),
    "bench": ("5 sites x 400 patients as feature bags without pixels (.h5)", PresetOptions, _PRESET),
    "faults": ("2 small sites in which every known fault happens once", PresetOptions, _PRESET),
}
