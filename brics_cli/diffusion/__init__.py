"""The diffusion model over key codes: denoisers, objectives and schedules, samplers, guidance."""
