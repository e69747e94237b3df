"""What `pytest bench/ --benchmark -k throughput` is made of: GlyphCRM beside its peers."""
