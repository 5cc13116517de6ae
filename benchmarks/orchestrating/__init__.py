"""Programs that orchestrate segments which do nothing: what a segment costs beside its work."""
