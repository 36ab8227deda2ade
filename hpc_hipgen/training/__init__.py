"""The one training loop on the DeepSpeed engine; it knows no model by name."""
