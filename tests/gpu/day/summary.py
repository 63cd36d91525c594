"""Last: what the bars say, a short table, from $OUT/results.jsonl."""

from __future__ import annotations

import json

from common import OUT

rows = [json.loads(line) for line in (OUT / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def show(row: dict) -> None:
    stage = row.pop("stage")
    if "failed" in row or row.get("exit", 0) not in (0, None):
        print(
            "FAILED ", stage, {k: v for k, v in row.items() if k in ("failed", "exit", "command", "recipe", "seconds")}
        )
    elif stage == "retrieval" and row.get("backend") == "triton" and "tables" in row:
        print(
            "ret    ",
            row["scale"],
            row["tables"],
            "batch",
            row["batch"],
            "fwd",
            row["forward_us_per_img"],
            "both",
            row["both_us_per_img"],
            "us/img; of unique / corners",
            row["both_of_unique"],
            row["both_of_corners"],
        )
    elif stage in (
        "retrieval-bar",
        "retrieval-smooth",
        "encode-network",
        "encode-path",
        "decode-network",
        "sample-network",
        "transforms",
        "validation",
        "stage",
        "nccl-one-rank",
        "two-processes",
        "ceilings",
        "tests",
        "brought-home",
    ):
        row.pop("at_s", None)
        print(f"{stage:15}", row)
    elif stage == "train":
        print(
            "train  ",
            row["recipe"],
            "compiled" if row["compile"] else "eager",
            f"norm {row['norm']}, {row['precision']}, batch {row['batch']}",
            f"{row['img_per_s']:.0f} img/s {row['ms_per_step']:.1f} ms {row['memory_gib']:.1f} GiB, MFU {row['mfu']}",
            row["phases_ms"],
        )
    elif stage == "doctor":
        print("doctor ", [check for check in row["checks"] if not check[1] or check[0] in ("device", "kernels")])
    elif stage == "train-profile":
        print("profile", row["recipe"], row["device_ms_per_step"], "ms on the device;", row["kernels"][:6])
    elif stage.startswith(("bench-", "eval", "sample", "encode")):
        print(f"{stage:15}", json.dumps(row.get("found"))[:600])


for row in rows:
    try:
        show(dict(row))
    except Exception as error:  # one odd row hides no other
        print("cannot show", row.get("stage"), type(error).__name__, error)
