"""The stages of a run, one module each, and the pipeline that chains them."""
