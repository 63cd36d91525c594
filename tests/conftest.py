"""Makes this folder importable: `standin_weights`."""
