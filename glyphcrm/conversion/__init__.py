"""Other models' checkpoints as GlyphCRM directories."""
