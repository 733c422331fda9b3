"""A picture of a run in MLflow's interface, for the report: report/figures/mlflow.png.

    python unet_segmentation.py     # or any run of the experiment; the newest that is finished is shown
    python -m report.screenshot     # half a minute; needs Chromium

The server is a real one on the store of this directory, on loopback, and ends with the picture.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._servers import free_port, server
from lab import command_line
from lab.track import store

EXPERIMENT = "2D_UNet_Segmentation"
PICTURE = Path(__file__).resolve().parent / "figures" / "mlflow.png"
WINDOW = (1500, 640)  # pixels, of which each is two by two in the file
AROUND = (197, 10, 396, 30)  # of the window, left, top, right, bottom: the menu, and the panel of an assistant
PATIENCE = 60  # seconds of the page's own clock, for the charts come after the page
ATTEMPTS = 5
LINE = (34, 114, 180)  # the colour of a chart's line


def newest_run(experiment: str):
    """The newest finished run of an experiment in the store; ValueError if there is none."""
    uri, _ = store.locate()
    client = store.import_mlflow().MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    finished = "attributes.status = 'FINISHED'"
    runs = client.search_runs([found.experiment_id], finished, max_results=1) if found else []
    if not runs:
        raise ValueError(f"{uri} holds no finished run of {experiment}: run `python unet_segmentation.py` first.")
    return runs[0]


def photograph(address: str, path: Path, folder: Path) -> None:
    """Have Chromium draw a page into a PNG file; again, if its charts are not there yet."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        raise ValueError("Chromium was not found; install it (Debian: apt install chromium).")
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2"]
    # Headless, it takes itself for a telephone without a mouse, and every chart shows its buttons.
    mouse = ("primaryHoverType=2", "availableHoverTypes=2", "primaryPointerType=4", "availablePointerTypes=4")
    command += [f"--blink-settings={','.join(mouse)}", f"--user-data-dir={folder}"]
    command += [f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--virtual-time-budget={1000 * PATIENCE}"]
    shot = folder / "shot.png"
    for _ in range(ATTEMPTS):
        subprocess.run([*command, f"--screenshot={shot}", address], check=True, capture_output=True, timeout=300)
        left, top, right, bottom = (2 * pixels for pixels in AROUND)
        with Image.open(shot) as picture:
            picture = picture.convert("RGB").crop((left, top, picture.width - right, picture.height - bottom))
        if has_charts(picture):
            picture.convert("P", palette=Image.Palette.ADAPTIVE).save(path, optimize=True)
            return
    raise command_line.Unfinished(f"{address} showed no charts in {ATTEMPTS} attempts; try again when less is running.")


def has_charts(picture: Image.Image) -> bool:
    """Whether lines are drawn in the lower half of the page, where no heading is."""
    pixels = np.asarray(picture, np.int16)[picture.height // 2 :]
    return np.count_nonzero(np.abs(pixels - LINE).max(axis=-1) < 20) > 1000


@command_line.script
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiment", default=EXPERIMENT, help="whose newest finished run is shown")
    args = parser.parse_args(argv)
    run, port = newest_run(args.experiment), free_port()
    address = f"http://127.0.0.1:{port}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/model-metrics"
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), store.locate()[0], port):
        photograph(address, PICTURE, Path(folder) / "browser")
    print(f"{PICTURE}: {run.info.run_name}, {run.info.run_id}")


if __name__ == "__main__":
    main()
