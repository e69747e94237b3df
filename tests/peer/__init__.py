"""transformers' own tests of a model, run on GlyphCRM: `make test-peer`."""
