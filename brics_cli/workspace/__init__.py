"""Artefacts on disk: run directories, lineage, "the newest of its kind", locks, atomic writes. No torch."""

from brics_cli.workspace.artefacts import (
    Artefact,
    Kind,
    Parent,
    Workspace,
    provenance_at,
    read_provenance,
    sha256_of_file,
    write_provenance,
)
from brics_cli.workspace.files import (
    atomic_path,
    check_writable,
    write_json_atomically,
    write_text_atomically,
)
from brics_cli.workspace.hdf5 import open_hdf5
from brics_cli.workspace.locks import hold_lock
from brics_cli.workspace.outputs import MARK, check_output, save_figure
