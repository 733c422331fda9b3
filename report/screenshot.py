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

from PIL import Image

from benchmarks._servers import free_port, server
from lab import command_line, store

EXPERIMENT = "2D_UNet_Segmentation"
PICTURE = Path(__file__).resolve().parent / "figures" / "mlflow.png"
WINDOW = (1500, 980)  # pixels, of which each is two by two in the file
AROUND = (197, 10, 396, 36)  # of the window, left, top, right, bottom: the menu, and the panel of an assistant
PATIENCE = 60  # seconds of the page's own clock, for the charts come after the page


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
    """Have Chromium draw a page into a PNG file."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        raise ValueError("Chromium was not found; install it (Debian: apt install chromium).")
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=2"]
    command += [f"--user-data-dir={folder}", f"--window-size={WINDOW[0]},{WINDOW[1]}"]
    command += [f"--virtual-time-budget={1000 * PATIENCE}", f"--screenshot={path}", address]
    # Headless, it takes itself for a telephone without a mouse, and every chart shows its buttons.
    command.insert(
        1, "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
    )
    subprocess.run(command, check=True, capture_output=True, timeout=5 * PATIENCE)
    with Image.open(path) as picture:
        left, top, right, bottom = (2 * pixels for pixels in AROUND)
        picture.crop((left, top, picture.width - right, picture.height - bottom)).convert(
            "P", palette=Image.Palette.ADAPTIVE
        ).save(path, optimize=True)


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
