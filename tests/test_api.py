"""``equipoise.api``: light to import, and each function on small inputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from equipoise import api
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.platform.errors import DataError, StudyError

#: Libraries that nobody should pay for before using something.
HEAVY = ("torch", "ray", "pandas", "sklearn", "scipy", "lifelines", "scanpy", "pyarrow", "openslide", "cv2")


def test_importing_it_loads_nothing_heavy() -> None:
    code = f"import sys, equipoise.api; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_function_is_documented_with_an_example() -> None:
    public = [name for name in dir(api) if not name.startswith("_") and callable(getattr(api, name))]
    public = [name for name in public if getattr(api, name).__module__ == "equipoise.api"]
    assert sorted(api.__all__) == sorted(public)
    for name in public:
        text = getattr(api, name).__doc__
        assert "Examples\n" in text, name
        assert f"{name}(" in text, name


def test_region_at_an_exact_resolution(svs: Path) -> None:
    with api.open_slide(svs) as slide:
        assert slide.mpp == 0.5
        assert repr(slide) == "<SlideReader crc.svs: 512 x 512 px, 0.5 um/px, aperio>"
        native = api.read_region(slide, 128, 64, (64, 32), 0.5)
        assert np.array_equal(native, slide.read(128, 64, 64, 32, (64, 32)))
        half = api.read_region(slide, 128, 64, (32, 16), 1.0)
        assert np.abs(half - native.reshape(16, 2, 32, 2, 3).mean((1, 3))).max() <= 0.5, "the exact average"
        assert api.read_region(slide, 128, 64, (16, 8), 2.0).shape == (8, 16, 3)
        with pytest.raises(SlideProblem, match="cannot fill"):
            api.read_region(slide, 0, 0, (64, 64), 0.25)


def test_stated_pixel_size_wins(svs: Path) -> None:
    with api.open_slide(svs, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "table")
    assert api.extract_slide(svs, tile_px=64, mpp=1.0, slide_mpp=1.0).metadata["level0_px"] == 64


def test_extraction_of_one_and_of_several(svs: Path, tmp_path: Path) -> None:
    one = api.extract_slide(svs, "random_conv", tile_px=64, encoder_params={"seed": 3})
    assert one.status == "ok"
    assert len(one.features) == len(one.coords) > 0
    both = list(
        api.extract_slides(
            [svs, tmp_path / "absent.svs"], "random_conv", tile_px=64, encoder_params={"seed": 3}
        )
    )
    assert [slide.status for slide in both] == ["ok", "missing"]
    assert np.array_equal(both[0].features, one.features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "uni3"}, "uni3"),
        ({"tile_pixels": 64}, "tile_pixels"),
        ({"mpp": 20}, "mpp: .*less than or equal to 5"),
        ({"encoder_params": {"seed": 1}}, "seed"),
    ],
)
def test_wrong_settings_are_refused(svs: Path, settings: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        api.extract_slide(svs, **settings)


def test_one_store_is_found_and_several_are_named(tmp_path: Path) -> None:
    from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec

    with pytest.raises(DataError, match="no feature store"):
        api.open_store(tmp_path)
    features = np.arange(6, dtype=np.float16).reshape(3, 2)
    with FeatureStore.create_or_open(tmp_path, StoreSpec("handcrafted", "00", 2, 0.5, 224)) as store:
        import pandas as pd

        slides = {"slide": ["a.svs"], "path": ["a.svs"], "mpp": [np.nan], "fingerprint": ["ff"]}
        [key] = store.register(pd.DataFrame(slides))
        corner = np.arange(3, dtype=np.int32)
        store.stage(key, corner, corner, features, {"slide": "a.svs", "status": "ok", "n": 3})
        store.recover_staged([key])
        store.commit()
    opened = api.open_store(tmp_path)
    assert np.array_equal(opened.read("a.svs")[0], features)
    assert "handcrafted (0.5 um/px, 224 px, 2 features): slides 1 ok" in repr(opened)
    with FeatureStore.create_or_open(tmp_path, StoreSpec("handcrafted", "00", 2, 1.0, 224)):
        pass
    with pytest.raises(DataError, match="2 feature stores: handcrafted-0.5mpp"):
        api.open_store(tmp_path)


BALANCING = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from equipoise.api import balancer

x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
loader = DataLoader(TensorDataset(x, x[:, 0], (x[:, 1] > 0).float()), batch_size=8)
mse, bce = nn.MSELoss(), nn.BCEWithLogitsLoss()

def losses(batch):
    x, grade, msi = batch
    out = model(x)
    return {"grade": mse(out[:, 0], grade), "msi": bce(out[:, 1], msi)}

def total():
    with torch.no_grad():
        return sum(losses((x, x[:, 0], (x[:, 1] > 0).float())).values()).item()

for method in sys.argv[1:]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = total()
    balance = balancer(model, ["grade", "msi"], method)
    for epoch in range(5):
        for batch in loader:
            others = iter(loader)
            again = lambda: losses(batch)
            other = lambda: losses(next(others))
            calls = {"forward": again, "validation": other, "samples": other}
            balance.step(losses(batch), optimizer, **{name: calls[name] for name in balance.needs})
        means = balance.end_epoch()
    assert total() < 0.9 * before, (method, before, total())
    assert set(means) == set(balance.weights) == {"grade", "msi"}
    print(balance)
print([name for name in sys.modules if name.split(".")[0] in ("ray", "pandas", "openslide", "lifelines")])
"""


def run_script(code: str, *arguments: str) -> list[str]:
    """Lines that a script printed in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_balancer_over_a_plain_module_and_loader() -> None:
    """A script that imports torch and nothing else of ours."""
    methods = ("uncertainty+pcgrad", "famo", "auto_lambda", "equal+sdmgrad")
    *shown, heavy = run_script(BALANCING, *methods)
    assert len(shown) == len(methods)
    for method, line in zip(methods, shown, strict=True):
        assert line.startswith("LossBalancer(")
        assert method in line
        assert "weights grade" in line
    assert heavy == "[]"


def test_unknown_methods_name_the_nearest() -> None:
    from torch import nn

    with pytest.raises(StudyError, match="uncertainty"):
        api.balancer(nn.Linear(2, 2), ["a", "b"], "uncertainti+pcgrad")


def test_metrics_of_both_layouts_are_the_same(tmp_path: Path) -> None:
    import pandas as pd

    from equipoise.platform.evaluation.stamp_export import export_stamp

    rng = np.random.default_rng(0)
    score = rng.normal(size=60)
    rows = pd.DataFrame({"patient": [f"p{i:02d}" for i in range(60)], "score": score})
    rows = rows.assign(
        cohort="cohort", site="cohort", repeat=0, fold=np.arange(60) % 2, role="test", task="LISS"
    )
    rows = rows.assign(
        **{"class": "", "target": score + rng.normal(size=60), "time": np.nan, "event": np.nan}
    )
    rows.to_csv(tmp_path / "ours.csv", index=False)
    files = sorted(export_stamp(rows, tmp_path))
    ours, theirs = api.metrics(tmp_path / "ours.csv", bootstrap=50), api.metrics(files, bootstrap=50)
    pd.testing.assert_frame_equal(ours, theirs)
    pearson = ours[(ours["metric"] == "pearson") & (ours["fold"] == "all") & (ours["predictor"] == "model")]
    [row] = pearson.to_dict("records")
    assert row["low"] < row["value"] < row["high"]
    assert row["n"] == 60
    wider = api.metrics(rows, bootstrap=50, confidence=0.99)
    assert wider.loc[pearson.index[0], "high"] > row["high"]


FEDERATION = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from equipoise.api import federate

def client(n, seed):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [0.5]])), batch_size=8, shuffle=True)

def loss_fn(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])

loaders = {"A": client(40, 1), "B": client(24, 2), "C": client(16, 3)}
for strategy in sys.argv[1:]:
    settings = {"local": {"optimizer": "sgd", "lr": 0.05, "epochs": 2}}
    if strategy == "fedbuff":
        settings["strategy_params"] = {"buffer": 2}
    runs = [federate(lambda: nn.Linear(3, 1), loaders, strategy, loss_fn=loss_fn, rounds=8, seed=4, **settings)
            for _ in range(2)]
    history = runs[0].history
    assert history[-1]["loss/loss"] < 0.2 * history[0]["loss/loss"], (strategy, history)
    assert all(torch.equal(a, b) for a, b in zip(*(run.model.parameters() for run in runs)))
    print(runs[0])
print([name for name in sys.modules if name.split(".")[0] in ("ray", "pandas", "openslide", "lifelines")])
"""


def test_federation_of_a_plain_module_and_loaders() -> None:
    """A script that imports torch and nothing else of ours; two runs are the same bit for bit."""
    strategies = ("fedavg", "scaffold", "fedbuff", "cyclic")
    *shown, heavy = run_script(FEDERATION, *strategies)
    assert len(shown) == len(strategies)
    for line in shown:
        assert line.startswith("<FederationResult 8 rounds, 3 clients")
    assert heavy == "[]"


def test_wrong_federations_are_refused() -> None:
    from torch import nn

    def federate(**settings: object) -> None:
        api.federate(lambda: nn.Linear(2, 1), [], loss_fn=lambda model, batch: model(batch), **settings)

    with pytest.raises(DataError, match="no client"):
        federate()
    with pytest.raises(StudyError, match="fedavgg"):
        federate(strategy="fedavgg")
    with pytest.raises(StudyError, match=r"settings of federate.*local\.lrr"):
        federate(local={"lrr": 0.1})


@pytest.fixture
def svs(tmp_path: Path) -> Path:
    """An Aperio slide, 512 px at 0.5 um/px with a second level of a quarter."""
    import cv2

    from equipoise.datasets.synthetic.pyramid import encode_jpeg
    from equipoise.datasets.synthetic.tiff import TiffWriter, TiledImage, picture_tags, tile_tags

    rng = np.random.default_rng(3)
    image = np.full((512, 512, 3), 244, np.uint8)
    cv2.circle(image, (256, 256), 220, (175, 95, 160), -1)
    for x, y in rng.integers(60, 450, (300, 2)):
        cv2.circle(image, (int(x), int(y)), 4, (80, 50, 130), -1)
    path = tmp_path / "crc.svs"
    with path.open("wb") as file:
        writer = TiffWriter(file)
        for step in (1, 4):
            level = TiledImage(512 // step, 512 // step, 128)
            pixels = cv2.resize(image, (level.width, level.height), interpolation=cv2.INTER_AREA)
            pixels = np.dstack([pixels, np.full(pixels.shape[:2], 244, np.uint8)])
            for y in range(0, level.height, 128):
                for x in range(0, level.width, 128):
                    writer.tile(level, encode_jpeg(pixels[y : y + 128, x : x + 128], 90))
            about = f"Aperio test\n{level.width}x{level.height}|MPP = 0.5"
            tags = picture_tags(level.width, level.height, subfile=0, description=about)
            writer.directory([*tags, *tile_tags(writer, level)])
    return path
