"""What pytest found, from its junit file: counts, and the first line of every failure. tests_result.py NAME FILE"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as tree
from pathlib import Path

from common import put

name, path = sys.argv[1], Path(sys.argv[2])
if not path.is_file():
    put("tests", name=name, failed="no junit file: pytest did not get to its end (log.txt has how far)")
    sys.exit()
passed, skipped, failures, slowest = 0, [], [], []
for case in tree.parse(path).iter("testcase"):
    node = f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"
    slowest.append((float(case.get("time", 0)), node))
    bad = case.find("failure") if case.find("failure") is not None else case.find("error")
    if bad is not None:
        text = [line for line in (bad.text or "").splitlines() if line.startswith("E ")]
        failures.append((node, (bad.get("message") or "")[:300].splitlines()[:1], [line[:200] for line in text[:3]]))
    elif case.find("skipped") is not None:
        skipped.append((node, (case.find("skipped").get("message") or "")[:80]))
    else:
        passed += 1
put(
    "tests",
    name=name,
    passed=passed,
    num_failed=len(failures),
    num_skipped=len(skipped),
    failures=failures[:40],
    skipped=skipped[:3],
    slowest=sorted(slowest, reverse=True)[:5],
)
