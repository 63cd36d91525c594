"""What is measured: the registry of metrics, one file per family of them, the pass over the images, and the report.

`registry`, `selection`, `report`, `comparing` and `cache` need no torch. Import the module you need: each brings only
its own dependencies.
"""
