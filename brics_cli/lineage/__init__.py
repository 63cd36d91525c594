"""Where an artefact came from."""
