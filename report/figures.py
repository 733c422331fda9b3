"""The report's figures, one function each, all of one family, drawn from results.json.

    python -m report.figures    # draws all of them again; build.py does so too

Vector graphics whose text is set by Typst in the font of the report. `say(english, french)` picks the edition's words.
"""

import json
import logging
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter

import conv3d_analysis
import data_synth
import unet_segmentation as unet
from benchmarks import object_sizes
from lab.evaluate.plots import BLUE, ERRORS, GREEN, ORANGE, VERMILION, around, plain_ticks, show_errors
from report import experiments

SKY, PURPLE = "#56B4E9", "#CC79A7"  # of the same palette as the colours of lab/evaluate/plots.py (Okabe and Ito 2008)
GREY = "0.45"
WIDTH = 6.3  # inches: the width of the text
STYLE = {
    # Typst has the first; Matplotlib measures with the second, which is about as wide.
    "font.family": ["Libertinus Serif", "STIXGeneral", "DejaVu Serif"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.unicode_minus": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}


def plain(say):
    """Tick labels without superfluous zeros, with a decimal comma in French."""
    return FuncFormatter(lambda value, _: say(f"{value:g}", f"{value:g}".replace(".", ",")))


def figure(height: float, columns: int = 1, **options):
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawn, np.atleast_1d(drawn.subplots(1, columns, **options))


def ticks(axis, values, say) -> None:
    """These ticks and no others, as plain numbers."""
    plain_ticks(axis, values)
    axis.set_major_formatter(plain(say))


def network(results, say):
    """The U-Net, map by map: as high as the images, as wide as the number of channels; an arrow is a layer."""
    maps = {row["name"]: row for row in results["e1"]["network"]}
    depth, gap, step = 3, 0.42, 1.05
    full = maps["encoder1"]["side"]
    drawn = Figure(figsize=(WIDTH, 3), layout="constrained")
    axes = drawn.subplots()
    arrow = {"arrowstyle": "-|>", "linewidth": 0.9, "shrinkA": 1, "shrinkB": 1, "mutation_scale": 8}

    def box(x, level, channels, color, label=None, below=False):
        """A map whose left edge is at x; its right edge."""
        side = full >> level
        height, width = 0.8 * (side / full) ** 0.45, 0.07 + channels / 620
        axes.add_patch(Rectangle((x, -level * step - height / 2), width, height, color=color, linewidth=0))
        label = channels if label is None else label
        y, va = (-height / 2 - 0.03, "top") if below else (height / 2 + 0.03, "bottom")
        axes.text(x + width / 2, -level * step + y, label, ha="center", va=va, fontsize=7.5)
        return x + width

    def layer(start, end, color, **style):
        axes.annotate("", end, start, arrowprops={**arrow, "color": color, **style})

    def convolved(x, level, channels, color, times=2):
        """Maps behind convolutions, an arrow to each; the right edge of the last."""
        for _ in range(times):
            layer((x, -level * step), (x + gap, -level * step), BLUE)
            x = box(x + gap, level, channels, color)
        return x

    right, ends = box(0, 0, 1, GREY, ""), []
    for level in range(depth + 1):
        name = f"encoder{level + 1}" if level < depth else "bottleneck"
        channels, color = maps[name]["channels"], BLUE if level < depth else ORANGE
        if level:  # the pooled map, below the one that it is made of
            previous = maps[f"encoder{level}"]["channels"]
            middle = right - (0.07 + previous / 620) / 2
            layer((middle, -(level - 1) * step - 0.8 * 0.5 ** (0.45 * (level - 1)) / 2),
                  (middle, -level * step + 0.8 * 0.5 ** (0.45 * level) / 2), VERMILION)  # fmt: skip
            left = right - (0.07 + previous / 620)
            right = box(left, level, previous, SKY, below=True)  # above it ends the arrow
        else:
            left = 0
        axes.text(left - 0.08, -level * step, f"{full >> level} × {full >> level}", ha="right", va="center", fontsize=8)
        right = convolved(right, level, channels, color)
        ends.append(right)
    for level in reversed(range(depth)):
        channels = maps[f"decoder{level + 1}"]["channels"]
        start = right + 0.1
        layer((right + 0.1, -(level + 1) * step + 0.05),
              (right + 0.3, -level * step - 0.8 * 0.5 ** (0.45 * level) / 2), GREEN)  # fmt: skip
        layer((ends[level], -level * step), (start, -level * step), GREY, linestyle="--")
        middle = box(start, level, channels, SKY, "")  # from the encoder
        right = box(middle, level, channels, PURPLE, "")
        top = -level * step + 0.4 * 0.5 ** (0.45 * level) + 0.03
        axes.text(middle, top, f"{channels} + {channels}", ha="center", va="bottom", fontsize=7.5)
        right = convolved(right, level, channels, GREEN)
    layer((right, 0), (right + gap + 0.1, 0), "black")
    right = box(right + gap + 0.1, 0, 1, GREY, "")
    for x, name, side in ((0.1, "image", "right"), (right - 0.1, say("mask", "masque"), "left")):
        axes.text(x, 0.44, f"{name}\n{full} × {full} × 1", ha=side, va="bottom", fontsize=8.5)
    legend = [
        (BLUE, "-", say("3 × 3 convolution, ReLU", "convolution 3 × 3, ReLU")),
        (VERMILION, "-", say("2 × 2 max pooling", "max-pooling 2 × 2")),
        (GREEN, "-", say("up: 2 × 2 transposed convolution", "vers le haut\u202f: convolution transposée 2 × 2")),
        (GREY, "--", say("skip connection: concatenation", "connexion de saut\u202f: concaténation")),
        ("black", "-", say("1 × 1 convolution, sigmoid", "convolution 1 × 1, sigmoïde")),
    ]
    for color, style, label in legend:
        axes.plot([], [], color=color, linestyle=style, label=label)
    drawn.legend(loc="outside lower center", ncols=3, columnspacing=1.4, handlelength=1.6)
    axes.set(xlim=(-0.95, right + 0.75), ylim=(-depth * step - 0.35, 0.85))
    axes.axis("off")
    return drawn


def curves(results, say):
    """Validation Dice by epoch of both recipes, seed by seed."""
    e1 = results["e1"]
    drawn, (axes,) = figure(2.5)
    names = {
        "report": (ORANGE, say("our reading of the report's recipe", "notre lecture de la recette d’origine")),
        "lab": (BLUE, say("lab's recipe", "recette du TP")),
    }
    for row, (color, label) in names.items():
        for i, curve in enumerate(e1["rows"][row]["curves"]):
            axes.plot(range(1, len(curve) + 1), curve, marker=".", color=color, label=None if i else label, alpha=0.85)
    axes.axhline(e1["original"]["dice"], color=GREY, linestyle="--", linewidth=0.9)
    axes.annotate(
        say("stated by the original", "annoncé par l’original"), (1, e1["original"]["dice"]), xytext=(0, 3),
        textcoords="offset points", color=GREY, fontsize=8.5,
    )  # fmt: skip
    axes.set_yscale("logit")
    lowest = min(min(curve) for row in names for curve in e1["rows"][row]["curves"])
    ticks(axes.yaxis, [value for value in (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995) if value > lowest], say)
    axes.set(
        xlabel=say("epoch", "époque"), ylabel=say("validation Dice (logit scale)", "Dice de validation (éch. logit)")
    )
    axes.set_ylim(lowest - 0.1 * (1 - lowest), 0.9965)
    axes.grid(axis="y")
    axes.legend(loc="lower right")
    return drawn


def predictions(results, say):
    """Image, truth, probability and enlarged errors of two typical and the two worst test images."""
    e1 = results["e1"]
    images, masks = data_synth.make_circles(e1["num_images"], 128, seed=(0, unet.TEST))
    labels = {
        "true negative": say("background, right", "fond, juste"),
        "true positive": say("circle, right", "cercle, juste"),
        "false positive": say("false positive", "faux positif"),
        "false negative": say("false negative", "faux négatif"),
    }
    drawn = Figure(figsize=(5.7, 5), layout="constrained")
    grid = drawn.subplots(4, 4)
    kinds = {"typical": say("typical", "typique"), "worst": say("worst", "pire cas")}
    for line, shown in zip(grid, e1["shown"], strict=True):
        i, probs = shown["image"], experiments.unpack(shown["probs"])
        true, hard = masks[i, ..., 0] == 1, probs >= 0.5
        zoom = around(true | hard)
        for axes, picture, cmap in zip(line, (images[i], masks[i], probs), ("gray", "gray", "viridis"), strict=False):
            axes.imshow(picture, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
        show_errors(line[3], true[zoom], hard[zoom])
        dice = f"Dice {shown['dice']:.4f}"
        line[0].set_ylabel(
            f"{kinds[shown['kind']]}\n{say(dice, dice.replace('.', ','))}",
            rotation=0, ha="right", va="center", fontsize=10.5,
        )  # fmt: skip
    titles = say(
        ("image", "ground truth", "probability", "errors, enlarged"),
        ("image", "vérité terrain", "probabilité", "erreurs, agrandies"),
    )
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    handles = [Patch(facecolor=ERRORS[name], edgecolor="0.5", label=label) for name, label in labels.items()]
    drawn.legend(handles=handles, loc="outside lower center", ncols=4)
    return drawn


def skips(results, say):
    """Dice and surface scores by kind of skip connections: a point per seed, a bar at the mean."""
    tolerance = results["e2"]["tolerance"]
    measures = {
        "dice": say("Dice", "Dice"),
        "surface_dice": say(f"surface Dice at {tolerance} px", f"Dice de surface à {tolerance} px"),
        "surface": say("mean surface distance, px", "distance moyenne, px"),
    }
    drawn, grid = figure(2.5, 3)
    tasks = {
        "large_one": say("1 large", "1 grand"),
        "large_three": say("3 large", "3 grands"),
        "small_one": say("1 small", "1 petit"),
        "small_three": say("3 small", "3 petits"),
    }
    kinds = {
        "concatenated": (BLUE, say("concatenated", "concaténés")),
        "added": (GREEN, say("added", "additionnés")),
        "none": (ORANGE, say("no skips", "sans sauts")),
    }
    for axes, (measure, title) in zip(grid, measures.items(), strict=True):
        for i, task in enumerate(tasks):
            for j, (kind, (color, label)) in enumerate(kinds.items()):
                found = results["e2"][task][kind][measure]
                dots(axes, i + 0.26 * (j - 1), found, color, label if i == 0 else None)
        axes.set_title(title)
        axes.set_xticks(range(len(tasks)), list(tasks.values()))
        axes.set_xlim(-0.5, len(tasks) - 0.5)
        axes.yaxis.set_major_formatter(plain(say))
        axes.grid(axis="y")
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def dots(axes, x, found, color, label=None) -> None:
    """The seeds as points and their mean as a bar."""
    axes.plot([x - 0.1, x + 0.1], [found["mean"]] * 2, color=color, linewidth=1.8, solid_capstyle="butt")
    axes.plot([x] * len(found["values"]), found["values"], "o", color=color, alpha=0.6, markeredgewidth=0, label=label)


def loss_names(say) -> dict:
    """The names of the losses, those of the text."""
    pooled, per_image = say("pooled Dice", "Dice globale"), say("per-image Dice", "Dice par image")
    tiny = "10⁻⁶"
    return {
        "bce": say("cross-entropy", "entropie croisée"),
        "pooled_dice": f"{pooled}, s = {tiny}",
        "pooled_dice_one": f"{pooled}, s = 1",
        "dice_tiny": f"{per_image}, s = {tiny}",
        "dice": f"{per_image}, s = 1",
        "dice_bce": say("Dice + cross-entropy", "Dice + entropie croisée"),
    }


def imbalance(results, say):
    """Left: Dice of each loss at three shares of foreground. Then: observed share against predicted probability."""
    drawn, grid = figure(2.4, 4)
    looks = ((ORANGE, "s"), (BLUE, "o"), (BLUE, "x"), (SKY, "D"), (SKY, "+"), (GREEN, "^"))
    styles = dict(zip(loss_names(say), looks, strict=True))
    shares = {"10": say("10%", "10\u202f%"), "1": say("1%", "1\u202f%"), "0_1": say("0.1%", "0,1\u202f%")}
    left, *others = grid
    for j, (loss, (color, marker)) in enumerate(styles.items()):
        for i, share in enumerate(shares):
            values = results["e3"][share][loss]["dice"]["values"]
            left.plot([i + 0.14 * (j - 2.5)] * len(values), values, marker, color=color, alpha=0.75, markersize=4,
                      markeredgewidth=0 if marker not in "x+" else 1,
                      label=loss_names(say)[loss] if i == 0 else None)  # fmt: skip
    left.set_title(say("Dice, per image", "Dice, par image"))
    left.set_xticks(range(len(shares)), list(shares.values()))
    left.set_xlabel(say("foreground", "avant-plan"))
    for axes, share in zip(others, shares, strict=True):
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.8)
        for loss, (color, marker) in styles.items():
            bins = results["e3"][share][loss]["reliability"]
            axes.plot(bins["p"], bins["y"], marker=marker, color=color, markersize=3, linewidth=0.8)
        axes.set_title(say(f"foreground {shares[share]}", f"avant-plan {shares[share]}"))
        axes.set(xlabel=say("predicted probability", "probabilité prédite"), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if axes is others[0]:
            axes.set_ylabel(say("share that is foreground", "part d’avant-plan"))
        axes.xaxis.set_major_formatter(plain(say))
    for axes in grid:
        axes.yaxis.set_major_formatter(plain(say))
        axes.grid(axis="y")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def overlap(results, say):
    """Left: Dice against IoU. Right: what Dice deducts of what IoU deducts."""
    drawn, (left, right) = figure(2.2, 2)
    iou = np.linspace(0, 1, 201)
    best = results["e4"]["largest_gap"]
    left.plot(iou, 2 * iou / (1 + iou), color=BLUE)
    left.plot(iou, iou, "--", color=GREY, linewidth=0.8)
    left.plot([best["iou"]] * 2, [best["iou"], best["iou"] + best["gap"]], color=VERMILION, marker=".")
    gap = f"{best['gap']:.3f}"
    left.annotate(
        say(f"largest gap, {gap}", f"écart maximal, {gap.replace('.', ',')}"), (best["iou"], best["iou"] + 0.06),
        xytext=(26, -27), textcoords="offset points", color=VERMILION,
    )  # fmt: skip
    left.text(0.62, 0.84, "D = 2J / (1 + J)", color=BLUE, ha="right")
    left.set(xlabel=say("IoU, J", "IoU, J"), ylabel="Dice, D", xlim=(0, 1), ylim=(0, 1.01))
    right.plot(iou, 1 / (1 + iou), color=BLUE)
    right.set(xlabel=say("IoU, J", "IoU, J"), ylabel="(1 − D) / (1 − J)", xlim=(0, 1), ylim=(0.45, 1.02))
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the grid does not cross the words
    right.text(0.16, 0.95,
               say("little overlap:\nhardly any leniency", "faible recouvrement\u202f:\npresque aucune indulgence"),
               color=GREY, va="center", bbox=plate)  # fmt: skip
    right.text(0.62, 0.545, say("good overlap:\nhalf the deduction", "bon recouvrement\u202f:\npénalité de moitié"),
               color=GREY, ha="right", va="center", bbox=plate)  # fmt: skip
    for axes in (left, right):
        axes.xaxis.set_major_formatter(plain(say))
        axes.yaxis.set_major_formatter(plain(say))
        axes.grid()
    return drawn


def pixels(results, say):
    """Errors of one pixel on discs of growing radius: what Dice and IoU lose, and the ratio of the two."""
    rows = sorted(results["e4"]["radii"].values(), key=lambda row: row["radius"])
    radius = [row["radius"] for row in rows]
    drawn, (left, right) = figure(2.4, 2)
    errors = {
        "shift": (BLUE, say("shifted by one pixel", "décalé d’un pixel")),
        "shrunk": (ORANGE, say("shrunk by one pixel", "rétréci d’un pixel")),
        "one_pixel": (GREEN, say("one pixel too many", "un pixel de trop")),
    }
    for name, (color, label) in errors.items():
        left.plot(radius, [row[name]["dice_lost"] for row in rows], "o-", color=color, label=label)
        left.plot(radius, [row[name]["iou_lost"] for row in rows], "s:", color=color, markerfacecolor="white")
        right.plot(radius, [row[name]["ratio"] for row in rows], "o-", color=color)
    left.plot([], [], "o-", color=GREY, label="1 − Dice")
    left.plot([], [], "s:", color=GREY, markerfacecolor="white", label="1 − IoU")
    left.set(
        xscale="log",
        yscale="log",
        xlabel=say("radius, pixels", "rayon, pixels"),
        ylabel=say("score lost", "score perdu"),
    )
    right.set(
        xscale="log", xlabel=say("radius, pixels", "rayon, pixels"), ylabel="(1 − D) / (1 − J)", ylim=(0.45, 0.85)
    )
    for axes in (left, right):
        ticks(axes.xaxis, [2, 3, 5, 10, 20, 30], say)
        axes.grid()
    ticks(left.yaxis, [0.001, 0.01, 0.1, 1], say)
    ticks(right.yaxis, [0.5, 0.6, 0.7, 0.8], say)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def conventions(results, say):
    """The same predictions under twelve conventions."""
    scores = results["e5"]["scores"]
    drawn, (far, near) = figure(2.3, 2, sharey=True, width_ratios=(1, 2.2))  # an axis with a gap: nothing lies there
    means = {
        "batch": say("mean of batches", "moyenne des lots"),
        "image": say("per image", "par image"),
        "pooled": say("pooled", "global"),
    }
    styles = {
        "soft_tiny": (ORANGE, "o", say("soft, s = 10⁻⁶", "doux, s = 10⁻⁶")),
        "soft_one": (ORANGE, "D", say("soft, s = 1", "doux, s = 1")),
        "hard_tiny": (BLUE, "o", say("hard, s = 10⁻⁶", "dur, s = 10⁻⁶")),
        "hard_one": (BLUE, "D", say("hard, s = 1", "dur, s = 1")),
    }
    seen = {True: [], False: []}
    apart = scores["soft_image_tiny"]
    for i, mean in enumerate(reversed(means)):
        for j, (style, (color, marker, label)) in enumerate(styles.items()):
            kind, smooth = style.split("_")
            found = scores[f"{kind}_{mean}_{smooth}"]
            y, axes = i + 0.17 * (1.5 - j), far if found is apart else near
            seen[found is apart] += found["values"]
            axes.plot(found["values"], [y] * len(found["values"]), color=color, linewidth=0.7, alpha=0.6)
            face = "white" if smooth == "one" else color
            axes.plot(found["values"], [y] * len(found["values"]), marker, color=color, markerfacecolor=face,
                      label=label if i == 0 else None)  # fmt: skip
    far.set_yticks(range(3), list(reversed(means.values())))
    near.tick_params(left=False)
    near.spines["left"].set_visible(False)
    for axes, values in ((far, seen[True]), (near, seen[False])):
        margin = 0.08 * (max(values) - min(values))
        axes.set_xlim(min(values) - margin, max(values) + margin)
        axes.xaxis.set_major_formatter(plain(say))
        axes.grid(axis="x")
        axes.set_xlabel("Dice")
    drawn.legend(*near.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


def slices(results, say):
    """Dice per volume of 3D and 2D networks, at two levels of noise; and validation Dice by epoch at the higher one."""
    drawn, (left, right) = figure(2.5, 2)
    longer = say(", longer", ", plus long")
    kinds = {
        "volumes": (BLUE, "3D"),
        "volumes_longer": (SKY, f"3D{longer}"),
        "slices": (ORANGE, "2D"),
        "slices_longer": (VERMILION, f"2D{longer}"),
    }
    for i, level in enumerate(("low", "high")):
        for j, (kind, (color, label)) in enumerate(kinds.items()):
            dots(left, i + 0.22 * (j - 1.5), results["e6"][level][kind]["dice"], color, label if i == 0 else None)
    names = [f"{say('noise', 'bruit')} {results['e6'][level]['noise']:g}" for level in ("low", "high")]
    left.set_xticks([0, 1], [say(name, name.replace(".", ",")) for name in names])
    left.set(xlim=(-0.5, 1.5), ylabel=say("Dice per volume, hard", "Dice par volume, dur"))
    for kind, (color, _) in kinds.items():
        for curve in results["e6"]["high"]["curves"][kind]:
            right.plot(range(1, len(curve) + 1), curve, color=color, linewidth=0.9)
    right.set(xlabel=say("epoch", "époque"), ylabel=say("validation Dice, soft", "Dice de validation, doux"))
    right.set_title(say(names[1], names[1].replace(".", ",")))
    for axes in (left, right):
        axes.yaxis.set_major_formatter(plain(say))
        axes.grid(axis="y")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


def memory(results, say):
    """Left: predicted against measured memory of the study. Right: what each compromise does."""
    e7 = results["e7"]
    drawn, (left, right) = figure(2.6, 2)
    kinds = {
        ("late", "float32"): (BLUE, "o", "float32"),
        ("late", "mixed_bfloat16"): (SKY, "o", "bfloat16"),
        ("early", "float32"): (ORANGE, "^", say("float32, early", "float32, précoce")),
        ("early", "mixed_bfloat16"): (PURPLE, "^", say("bfloat16, early", "bfloat16, précoce")),
    }
    for (downsampling, precision), (color, marker, label) in kinds.items():
        chosen = [p for p in e7["points"] if (p["downsampling"], p["precision"]) == (downsampling, precision)]
        left.plot([p["measured"] for p in chosen], [p["predicted"] for p in chosen], marker, color=color,
                  alpha=0.75, markeredgewidth=0, label=label)  # fmt: skip
    ends = [f([p[k] for p in e7["points"] for k in ("measured", "predicted")]) for f in (min, max)]
    left.plot(ends, ends, color=GREY, linewidth=0.8, zorder=0)
    left.set(
        xscale="log",
        yscale="log",
        xlabel=say("measured, MiB", "mesurée, Mio"),
        ylabel=say("predicted, MiB", "prédite, Mio"),
    )
    for axis in (left.xaxis, left.yaxis):
        ticks(axis, [100, 300, 1000, 3000, 10000], say)
    left.grid()
    left.legend(fontsize=8, handletextpad=0.2, loc="upper left")
    names = {
        "kernel7": say("kernel 7", "noyau 7"),
        "kernel5": say("kernel 5", "noyau 5"),
        "filters": say("twice the filters", "deux fois plus de filtres"),
        "large": say("sides twice as long", "côtés doublés"),
        "patch": say("patch, half the sides", "sous-volume, côtés ÷ 2"),
        "early": say("early downsampling", "réduction précoce"),
    }
    measures = {
        "parameters": (ORANGE, "D", say("parameters", "paramètres")),
        "giga_multiply_adds": (GREEN, "^", say("multiply-adds", "multiplications-additions")),
        "predicted_mib": (BLUE, "o", say("memory", "mémoire")),
    }
    base = e7["variants"]["base"]
    for j, (measure, (color, marker, label)) in enumerate(measures.items()):
        factors = [e7["variants"][name][measure] / base[measure] for name in names]
        right.plot(factors, np.arange(len(names)) + 0.2 * (1 - j), marker, color=color, label=label)
    right.axvline(1, color=GREY, linewidth=0.8, zorder=0)
    right.set_yticks(range(len(names)), list(names.values()))
    right.invert_yaxis()
    right.set(xscale="log", xlabel=say("times the base network's", "rapport au réseau de base"))
    ticks(right.xaxis, [0.1, 0.3, 1, 3, 10], say)
    right.grid(axis="x")
    right.legend(
        fontsize=8, handletextpad=0.2, loc="upper center", bbox_to_anchor=(0.3, 1.16), ncols=3, columnspacing=0.8
    )  # above the axes
    return drawn


def conv3d(results, say):
    """Left: the Conv3D network of the script's defaults, block by block. Right: its simulated curves."""
    args = conv3d_analysis.parse_args([])
    side, width = args.input_shape[0], args.filters
    drawn, (left, right) = figure(1.9, 2, width_ratios=(1.9, 1))
    blocks = [(side, width, BLUE), (side // 2, 2 * width, BLUE), (side // 4, 4 * width, ORANGE)]
    blocks += [(side // 2, 2 * width, GREEN), (side, width, GREEN), (side, 1, GREY)]
    steps = ("max-pooling 2³",) * 2 + (say("transposed 2³", "transposée 2³"),) * 2
    steps += (say("1³, sigmoid", "1³, sigmoïde"),)
    tops = [0.4 * size / side + 0.04 for size, _, _ in blocks]
    for x, (size, channels, color) in enumerate(blocks):
        left.add_patch(Rectangle((x - 0.12, -0.4 * size / side), 0.24, 0.8 * size / side, color=color, linewidth=0))
        left.text(x, -0.5, f"{size}³ × {channels}", ha="center", va="top", fontsize=8)
    for x, step in enumerate(steps):
        left.annotate("", (x + 0.86, 0), (x + 0.14, 0), arrowprops={"arrowstyle": "-|>", "linewidth": 0.9})
        left.text(x + 0.5, -0.76 - 0.2 * (x % 2), step, ha="center", va="top", fontsize=7.5)
    for first, last, height in ((0, 4, 0.75), (1, 3, 0.55)):  # the skip connections
        left.plot([first, first, last], [tops[first], height, height], "--", color=GREY, linewidth=0.9)
        left.annotate("", (last, tops[last]), (last, height), arrowprops={"arrowstyle": "-|>", "color": GREY})
    left.set(xlim=(-0.5, 5.5), ylim=(-1.2, 0.85))
    left.axis("off")
    curves = conv3d_analysis.simulate(args.steps, args.seed)
    for name, color, style in (("loss", ORANGE, "-"), ("dice", BLUE, "--")):
        right.plot(curves["step"], curves[f"simulated/{name}"], style, color=color, label=f"simulated/{name}")
    right.set(xlabel=say("simulated step", "pas simulé"), ylim=(0, 1))
    right.set_title(say("SIMULATED by a formula", "SIMULÉ par une formule"))
    ticks(right.yaxis, [0, 0.5, 1], say)
    right.legend(fontsize=8)
    return drawn


def noise(results, say):
    """Dice against noise for the best threshold, the network and the circle fit."""
    levels = list(results["e9"]["levels"].values())
    drawn, (axes,) = figure(2.5)
    lines = {
        "fit": (GREEN, "s", say("circle fit, which knows the shape", "ajustement d’un cercle, qui connaît la forme")),
        "network": (BLUE, "o", say("U-Net", "U-Net")),
        "threshold": (ORANGE, "^", say("best global threshold", "meilleur seuil global")),
    }
    for name, (color, marker, label) in lines.items():
        values = [level[name]["image_dice"]["mean"] for level in levels]
        axes.plot([level["noise"] for level in levels], values, marker + "-", color=color, label=label)
    axes.set(xscale="log", yscale="logit", ylim=(0.1, 0.99998))
    axes.set(
        xlabel=say(
            "standard deviation of the noise (the contrast is 0.5)", "écart type du bruit (le contraste est de 0,5)"
        ),
        ylabel=say("Dice per image (logit scale)", "Dice par image (éch. logit)"),
    )
    ticks(axes.xaxis, [level["noise"] for level in levels], say)
    ticks(axes.yaxis, [0.2, 0.5, 0.8, 0.95, 0.99, 0.998, 0.9995, 0.9999], say)
    axes.grid()
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def sizes(results, say):
    """Dice against the radius of the objects, as they are and at the scale that is found; None without the record."""
    if "object_sizes" not in results["records"]:
        return None
    rows = results["records"]["object_sizes"]["rows"]
    drawn, (axes,) = figure(2.3)
    low, high = object_sizes.TRAINED_ON
    axes.axvspan(low, high, color="0.93", label=say("radii of the training", "rayons de l’entraînement"))
    lines = {
        "dice_of_best_scale": (GREEN, "s:", say("best scale, by the truth", "meilleure échelle, d’après la vérité")),
        "dice": (BLUE, "o-", say("scale found", "échelle trouvée")),
        "dice_as_it_is": (ORANGE, "^--", say("as it is", "telle quelle")),
    }
    radii = [row["radius"] for row in rows]
    for key, (color, style, label) in lines.items():
        axes.plot(radii, [row[key] for row in rows], style, color=color, label=label)
    axes.set(xscale="log", ylim=(0, 1))
    axes.set(
        xlabel=say("radius of the objects, pixels", "rayon des objets, pixels"), ylabel=say("mean Dice", "Dice moyen")
    )
    ticks(axes.xaxis, radii, say)
    axes.yaxis.set_major_formatter(plain(say))
    axes.grid()
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


FIGURES = (
    network,
    curves,
    predictions,
    skips,
    imbalance,
    overlap,
    pixels,
    conventions,
    slices,
    conv3d,
    memory,
    noise,
    sizes,
)


def draw_all(results: dict, edition: str, folder: Path) -> None:
    """Draw every figure of an edition, "en" or "fr", into `folder`."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # the first font is Typst's alone
    folder.mkdir(parents=True, exist_ok=True)
    for draw in FIGURES:
        with rc_context(STYLE):
            drawn = draw(results, lambda english, french: french if edition == "fr" else english)
            if drawn is not None:
                drawn.savefig(folder / f"{draw.__name__}.svg", metadata={"Date": None}, dpi=200)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    for name in ("en", "fr"):
        draw_all(json.loads((here / "results.json").read_text()), name, here / "figures" / name)
