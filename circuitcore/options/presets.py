"""Presets: named sets of options."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"levels": "linear:51"},
    "paper-literal": {
        "levels": "linear:51",
        "bias": "exact",
        "reference": "unpruned",
    },
    "strict": {
        "bias": "exact",
        "false_alarm_norm": "target",
    },
    "vss": {
        "bias": "none",
        "threshold": 0.85,
        "reference": "unpruned",
        "stop": "sparsest-above",
    },
    "hamblin": {
        "granularity": "kernel",
        "magnitude": "position",
        "spatial": "mean",
        "levels": "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.98,0.99,0.995,0.998,0.999",
    },
}
