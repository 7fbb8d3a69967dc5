"""How much memory a run needs, found by walking its training step through without memory; see docs/doctor.md."""
