"""Two examples a verb, at the foot of its --help.

All that need no other files work on the bundled example once ``runs/first`` is swept, as the second
one of `sweep` does.
"""

from __future__ import annotations

Examples = tuple[tuple[str, str], ...]  # of (command, what it does)

EXAMPLES: dict[str, Examples] = {
    "sweep": (
        ("circuitcore sweep Trouser Bag", "two categories of the bundled example"),
        ("circuitcore sweep --out runs/first", "all ten, in a folder of that name: a minute"),
    ),
    "plan": (
        ("circuitcore plan Trouser Bag", "cost of that sweep here, with a probe of a second"),
        (
            "circuitcore plan --model tv:alexnet-shapes --target h100",
            "AlexNet and ImageNet's proportions on a GPU that need not be here",
        ),
    ),
    "score": (
        ("circuitcore score Bag --granularity kernel", "what the scores of its layers are like"),
        ("circuitcore score Bag --out scores", "the scores themselves, a file a category"),
    ),
    "extract": (
        ("circuitcore extract runs/first --threshold 0.8", "smaller circuits, in a new folder"),
        (
            "circuitcore extract runs/first --stop sparsest-above -o runs/lower",
            "by another stop rule, in a folder of that name",
        ),
    ),
    "evaluate": (
        ("circuitcore evaluate runs/first", "on the run's own held-out images"),
        (
            "circuitcore evaluate runs/first --images imagenet-v2/",
            "on other images of the same categories, kept for the report",
        ),
    ),
    "overlap": (
        ("circuitcore overlap runs/first", "every pair, highest first"),
        ("circuitcore overlap runs/first --format csv > overlap.csv", "every layer too"),
    ),
    "controls": (
        ("circuitcore controls runs/first", "circuits beside random and other masks"),
        ("circuitcore controls runs/first --format csv > controls.csv", "the same as a file"),
    ),
    "report": (
        ("circuitcore report runs/first", "made anew, with all that was asked of the run"),
        ('open "$(circuitcore report runs/first)"', "and shown (on Linux: xdg-open)"),
    ),
    "export": (
        ("circuitcore export runs/first Bag", "into the run folder"),
        ("circuitcore export runs/first Bag --out bag.safetensors", "into a file of that name"),
    ),
    "compact": (
        ("circuitcore compact runs/first Bag", "as a .pt2 for plain torch, its speed measured"),
        (
            "circuitcore compact runs/first Bag --no-timing -o bag.pt2",
            "into a file of that name, unmeasured",
        ),
    ),
    "show": (
        ("circuitcore show runs/first Bag", "drawn, into the run folder"),
        (
            "circuitcore show runs/first Bag --top 5 --out bag.png",
            "five units a layer, as a PNG of that name",
        ),
    ),
    "stability": (
        ("circuitcore stability runs/first --resamples 20", "do other images give these circuits?"),
        ("circuitcore stability Bag", "how many scoring images make a stable order?"),
    ),
    "structure": (
        ("circuitcore structure runs/first", "sharing by depth and by unit, beside chance"),
        ("circuitcore structure runs/first --confusions", "do confused categories share more?"),
    ),
    "area": (
        ("circuitcore area runs/first", "from the stored curves, at once"),
        ("circuitcore area runs/first --measure csa --format csv", "of CSA, as rows"),
    ),
    "compare": (
        ("circuitcore compare runs/first runs/lower", "what differs, and what that changes"),
        ("circuitcore compare runs/first runs/lower --plot curves.svg", "with both mean curves"),
    ),
    "lesion": (
        ("circuitcore lesion runs/first", "every circuit, and its private weights"),
        ("circuitcore lesion runs/first Bag --kind private", "of one category, private ones alone"),
    ),
    "reproduce": (
        ("circuitcore reproduce vss Trouser Bag", "the abstract's readings, on the example"),
        (
            "circuitcore reproduce paper --model tv:alexnet@IMAGENET1K_V1 --images imagenet",
            "the paper's, on its own network and images",
        ),
    ),
    "ls": (
        ("circuitcore ls runs", "what is in the folder runs, and how far it is"),
        ("circuitcore ls categories --format csv", "numbers, names and folders of output units"),
    ),
    "doctor": (
        ("circuitcore doctor", "a line a check"),
        ("circuitcore doctor --format json", "the same for a program; exit code 5 if unfit"),
    ),
    "verify": (
        ("circuitcore verify runs/first", "every file, and one accuracy computed again"),
        ("circuitcore verify runs/first --repair", "set aside and make anew what is damaged"),
    ),
    "kernels": (
        ("circuitcore kernels", "compiled for an H100: about a minute"),
        ("circuitcore kernels --target gfx942 --format csv", "for an MI300, as rows"),
    ),
    "tune": (
        ("circuitcore tune", "once on a machine with a GPU"),
        ("circuitcore tune --format json", "the same, printed for a program"),
    ),
    "bench": (
        ("circuitcore bench --collect-only -q", "which benchmarks there are"),
        ("circuitcore bench -k scoring", "those of scoring alone"),
    ),
    "profile": (
        ("circuitcore profile -- sweep Bag", "one category of the example"),
        ("circuitcore profile --out trace.json.gz -- sweep Bag", "keep the trace"),
    ),
    "worker": (
        ("circuitcore worker runs/first", "works on what no other worker is at"),
        ("circuitcore worker runs/first --shard 0/4", "the first quarter of it alone"),
    ),
    "launch": (
        ("circuitcore launch runs/first --shards 2 --dry-run", "what would be submitted"),
        ("circuitcore launch runs/first --cluster slurm --partition gpu", "submit it to SLURM"),
    ),
    "watch": (
        ("circuitcore watch runs/first", "until it is over"),
        ("circuitcore watch runs/first --once --format json", "once, for a program"),
    ),
}
